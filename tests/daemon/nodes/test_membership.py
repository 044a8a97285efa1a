"""Nodes in the ledger: heartbeats, leases, the work of expired nodes, and conflicting transactions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from config.settings import Settings
from daemon.archive.client import Archive
from daemon.checks.nodes import node_findings
from daemon.ledger import Ledger, database, instances, job_claims, jobs, nodes, outbox
from daemon.ledger.schema import OutboxState
from daemon.ledger.schema import jobs as job_table
from daemon.ledger.schema import nodes as node_table
from daemon.monitoring.status_report import collect
from daemon.nodes.membership import Node
from daemon.storage.deletion import delete_files
from daemon.storage.spool import Spool
from daemon.system import process_identity
from tests.daemon.ledger.test_transitions import IMAGE, arrive, lesion_job, report, state_of, stored
from tests.support.ledgers import BUNDLE, facts, join
from tests.support.peers.postgresql import PASSWORD, PostgreSQL
from tests.support.peers.programs import free_port, wait_until

A, B = "node-a", "node-b"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    join(opened, A)
    join(opened, B)
    yield opened
    opened.close()


def silence(ledger: Ledger, node_id: str, seconds: float = 10_000) -> None:
    with ledger.write() as connection:
        connection.execute(
            update(node_table).where(node_table.c.id == node_id).values(beat_at=node_table.c.beat_at - seconds)
        )


def ready_jobs(ledger: Ledger, number: int) -> list[int]:
    ids = []
    for index in range(number):
        with ledger.write() as connection:
            _, instance_id = instances.record(connection, stored(f"1.2.9.{index}"))
            ids.append(jobs.create(connection, instance_id, f"1.2.9.{index}", (), BUNDLE, 1.0))
    return ids


def test_a_node_is_alive_by_the_databases_clock(ledger: Ledger) -> None:
    with ledger.read() as connection:
        assert [(row.id, bool(row.alive)) for row in nodes.all(connection)] == [(A, True), (B, True)]
        assert all(abs(row.beat_at - time.time()) < 60 for row in nodes.all(connection)), "seconds since the epoch"
    silence(ledger, A)
    with ledger.read() as connection:
        assert nodes.expired(connection) == [A]
        silent_s = {row.id: row.silent_s for row in nodes.all(connection)}
    assert silent_s[A] >= 10_000 > 100 > silent_s[B]
    with ledger.write() as connection:
        assert nodes.beat(connection, A)
        assert nodes.expired(connection) == []


def test_no_two_nodes_claim_the_same_job(ledger: Ledger) -> None:
    ids = ready_jobs(ledger, 24)

    def claim(owner: str) -> list[int]:
        claimed = []
        while rows := ledger.transact(lambda connection: job_claims.claim(connection, owner, 3, 10.0)):
            claimed += [row.id for row in rows]
            assert {row.owner for row in rows} == {owner}
        return claimed

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(claim, (A, B))
    assert sorted(first + second) == ids


def test_the_work_of_a_silent_node_is_given_back_and_that_of_a_living_one_is_not(ledger: Ledger) -> None:
    first, second = ready_jobs(ledger, 2)
    with ledger.write() as connection:
        (mine,) = job_claims.claim(connection, A, 1, 10.0)
        job_claims.claim(connection, B, 1, 10.0)
        assert nodes.take_duty(connection, A, "housekeeping")
        assert not nodes.take_duty(connection, B, "housekeeping")
    silence(ledger, A)
    with ledger.write() as connection:
        taken = nodes.take_over(connection, (), 20.0)
    assert (taken.nodes, taken.jobs, taken.given_up) == (1, 1, 0)
    assert (state_of(ledger, first), state_of(ledger, second)) == ("ready", "running")
    with ledger.write() as connection:
        assert job_claims.claim(connection, A, 9, 20.0) == [], "a node whose lease expired claims nothing"
        assert nodes.take_duty(connection, B, "housekeeping")
        (again,) = job_claims.claim(connection, B, 9, 20.0)
        assert (again.id, again.attempts) == (first, 2), "an attempt counts as it does in a crash"
        # What the first node still does counts for nothing.
        assert not job_claims.sending(connection, mine, {}, 21.0)
        assert not job_claims.quarantine(connection, mine, "no", 21.0)
        assert job_claims.sending(connection, again, {"by": "b"}, 22.0)
        outbox.put(connection, first, "1.2.9.0", [report("2.25.1")], 22.0)


def test_a_node_that_leaves_gives_back_at_once_and_no_attempt_counts(ledger: Ledger) -> None:
    (job,) = ready_jobs(ledger, 1)
    with ledger.write() as connection:
        job_claims.claim(connection, A, 1, 10.0)
        nodes.leave(connection, A, 11.0)
        (again,) = job_claims.claim(connection, B, 1, 11.0)
    assert (again.id, again.attempts) == (job, 1)


def test_reports_go_out_by_one_node_and_a_dead_ones_by_another(ledger: Ledger) -> None:
    (job,) = ready_jobs(ledger, 1)
    with ledger.write() as connection:
        (row,) = job_claims.claim(connection, A, 1, 10.0)
        job_claims.sending(connection, row, {}, 11.0)
        outbox.put(connection, job, "1.2.9.0", [report("2.25.1")], 11.0)
        (item,) = outbox.claim(connection, A, 12.0, 9)
        assert (
            outbox.claim(connection, B, 12.0, 9) == []
            and outbox.next_attempt(connection, B, OutboxState.QUEUED) is None
        )
        assert len(outbox.claim(connection, A, 12.0, 9)) == 1, "what an earlier call left"
    silence(ledger, A)
    with ledger.write() as connection:
        assert nodes.take_over(connection, (), 20.0).reports == 1
        assert len(outbox.claim(connection, B, 20.0, 9)) == 1
        assert not outbox.failed(connection, item.id, 0xC000, "no", 21.0, A), "it is not the first one's any more"
        assert outbox.stored(connection, item.id, 0, None, 22.0, B)
    assert state_of(ledger, job) == "done"


def test_image_and_lesion_object_recorded_at_once_are_paired(ledger: Ledger) -> None:
    """On PostgreSQL neither transaction sees the other's row: one of them is begun again."""
    for index in range(12):
        image, source, both = f"1.7.{index}.1", f"1.7.{index}.2", threading.Barrier(2)

        def image_comes(image: str = image, both: threading.Barrier = both) -> None:
            def transition(connection):  # type: ignore[no-untyped-def]
                instances.record(connection, stored(image))
                jobs.promote(connection, jobs.needing(connection, image), 1.0)

            both.wait(10)
            ledger.transact(transition)

        def source_comes(image: str = image, source: str = source, both: threading.Barrier = both) -> None:
            def transition(connection):  # type: ignore[no-untyped-def]
                _, instance_id = instances.record(connection, stored(source))
                jobs.create(connection, instance_id, source, (image,), BUNDLE, 1.0)

            both.wait(10)
            ledger.transact(transition)

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(image_comes), pool.submit(source_comes)]:
                future.result()
    with ledger.read() as connection:
        assert set(connection.execute(select(job_table.c.state)).scalars()) == {"ready"}
        assert jobs.complete_but_waiting(connection) == []


def test_the_last_two_reports_of_a_job_end_at_once(ledger: Ledger) -> None:
    (job,) = ready_jobs(ledger, 1)
    with ledger.write() as connection:
        (row,) = job_claims.claim(connection, A, 1, 10.0)
        job_claims.sending(connection, row, {}, 11.0)
        outbox.put(connection, job, "1.2.9.0", [report("2.25.1"), report("2.25.2")], 11.0)
        items = [item.id for item in outbox.claim(connection, A, 11.0, 9)]
    both = threading.Barrier(2)

    def ends(item: int) -> None:
        both.wait(10)
        ledger.transact(lambda connection: outbox.stored(connection, item, 0, None, 12.0, A))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ends, items))
    assert state_of(ledger, job) == "done"


def test_the_same_instance_at_once_is_recorded_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: ledger.transact(lambda c: instances.record(c, stored(IMAGE))), range(12)))
    with ledger.read() as connection:
        assert instances.received(connection) == 12
        assert len(instances.current(connection, [IMAGE])) == 1


def test_what_a_peer_said_is_kept_whatever_it_holds(ledger: Ledger) -> None:
    (job,) = ready_jobs(ledger, 1)
    with ledger.write() as connection:
        (row,) = job_claims.claim(connection, A, 1, 10.0)
        assert job_claims.quarantine(connection, row, "before\0after \udcff", 11.0)
    with ledger.read() as connection:
        kept = connection.execute(select(job_table.c.reason).where(job_table.c.id == job)).scalar_one()
    assert kept.startswith("before\ufffdafter")


def test_a_file_without_a_row_that_was_received_again_stays(ledger: Ledger, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for name in ("here", "gone"):
        (spool.directory / "instances" / name).write_bytes(b"x")
    arrive(ledger, stored(IMAGE))
    with ledger.write() as connection:
        connection.exec_driver_sql("UPDATE instances SET path = 'instances/here'")
    assert delete_files(ledger, spool, ["instances/here", "instances/gone"]) == 1
    assert [path.name for path in (spool.directory / "instances").iterdir() if path.is_file()] == ["here"]


def test_a_node_taken_for_dead_joins_under_a_new_id(ledger: Ledger, tmp_path: Path) -> None:
    node = Node(ledger, Spool(tmp_path / "spool"), facts(lease_s=5))
    node.join()
    folder, held = node.incoming, node.hold()
    assert not held.lost()
    node.start()
    with ledger.write() as connection:
        nodes.take_over(connection, [node.id], 1.0)

    def joined() -> bool:
        with ledger.read() as connection:
            return node.id != held.id and node.id in nodes.ids(connection)

    wait_until(joined, "it joins again", 30)
    assert held.lost() and node.incoming == folder
    node.leave()
    with ledger.read() as connection:
        assert nodes.ids(connection) == {A, B}
    assert not folder.exists()


def test_only_what_dead_processes_were_receiving_is_swept(ledger: Ledger, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    first, second = (Node(ledger, spool, facts()) for _ in range(2))
    first.join()
    (first.incoming / "x.part").write_bytes(b"half")
    (spool.receiving_folder("dead") / "y.part").write_bytes(b"half")
    second.join()
    assert second.delete_orphaned_incoming() == 1
    assert (first.incoming / "x.part").exists()


def test_a_process_that_ended_on_this_machine_is_known_to_be_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here, _, _ = process_identity.own_identity().partition(":")
    identity = f"{here}:{child.pid}:{process_identity._start_ticks(child.pid)}"
    assert not process_identity.is_gone(identity) and not process_identity.is_gone(process_identity.own_identity())
    assert process_identity.is_gone(f"{here}:{os.getpid()}:1"), "another process has its id by now"
    child.kill()
    child.wait()
    assert process_identity.is_gone(identity)
    assert not process_identity.is_gone(identity.replace(here, "another machine")), "that cannot be known"
    assert not process_identity.is_gone("")


@pytest.mark.peers
def test_ledgers_opened_at_once_on_an_empty_database(postgresql_url: str) -> None:
    def opened(_: int) -> None:
        Ledger(postgresql_url).close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(opened, range(4)))
    ledger = Ledger(postgresql_url)
    lesion_job(ledger)
    with ledger.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM alembic_version").scalar_one() == 1
    ledger.close()


@pytest.mark.peers
def test_a_server_that_was_restarted_is_found_again(postgresql: PostgreSQL, postgresql_url: str) -> None:
    ledger = Ledger(postgresql_url)
    join(ledger, A)
    postgresql.stop()
    with pytest.raises(OperationalError):
        ledger.transact(lambda connection: nodes.beat(connection, A))
    postgresql.start()
    assert ledger.transact(lambda connection: nodes.beat(connection, A))
    ledger.close()


@pytest.mark.peers
def test_the_password_is_read_from_its_file_for_each_connection(postgresql: PostgreSQL, tmp_path: Path) -> None:
    file = tmp_path / "password"
    with postgresql.database() as name:
        url = postgresql.url_over_tcp(name)
        file.write_text("wrong-PLANTED\n")
        with pytest.raises(Exception, match="password authentication failed") as refused:
            Ledger(url, file)
        assert "PLANTED" not in str(refused.value)
        file.write_text(f"{PASSWORD}\n")
        Ledger(url, file).close()
        assert PASSWORD not in repr(database.open_engine(url, file))


@pytest.mark.peers
def test_check_and_status_name_server_and_nodes(postgresql_url: str, tmp_path: Path) -> None:
    ledger = Ledger(postgresql_url)
    join(ledger, A)
    join(ledger, B)
    silence(ledger, B)
    settings = Settings(ledger={"url": postgresql_url}, spool={"directory": tmp_path / "spool"})
    said = {(one.subject, one.level): one.text for one in node_findings(settings, ledger)}
    assert "PostgreSQL" in said["database", "ok"]
    assert "fsync = off" in said["database", "bad"], "as it is in tests"
    assert "lease expired: 1" in said["nodes", "ok"]
    archive = Archive(
        settings.archive.model_copy(update={"host": "127.0.0.1", "port": free_port()}), "MAMMOD", tmp_path
    )
    state = json.loads(json.dumps(collect(ledger, archive, None)))
    assert [node["alive"] for node in state["nodes"]] == [True, False]
    assert state["spool_bytes"] == 0
    ledger.close()


def test_a_ledger_of_the_version_before_keeps_its_rows_and_its_running_jobs_are_begun_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    engine = database.open_engine(url)
    config = database._config()
    with engine.execution_options(write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.exec_driver_sql(
            "INSERT INTO instances VALUES (1,'1.5','1','1','1','1','d',1,'p','current','AE',1.0,1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO jobs VALUES (1,1,'1.5','bundle','running',NULL,0,1,1.0,1.0,1.0,NULL,NULL)"
        )
        connection.exec_driver_sql("INSERT INTO needs VALUES (1,'1.6')")
    engine.dispose()
    ledger = Ledger(url)
    join(ledger, A)
    with ledger.write() as connection:
        assert nodes.take_over(connection, (), 5.0).jobs == 1
        assert jobs.needed_by(connection, 1) == ["1.6"]
        (row,) = job_claims.claim(connection, A, 9, 6.0)
    assert (row.attempts, row.bundle) == (2, BUNDLE)
    ledger.close()
