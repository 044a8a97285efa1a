"""The ledger: schema and migrations, and the transitions of instances, jobs and outbox items."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select, text, update

from daemon.errors import LedgerError
from daemon.events.outcomes import Arrival
from daemon.ledger import Ledger, instances, job_claims, jobs, nodes, outbox
from daemon.ledger.instances import StoredInstance
from daemon.ledger.schema import JobState, OutboxState, metadata
from daemon.ledger.schema import instances as instance_table
from daemon.ledger.schema import jobs as job_table
from daemon.ledger.schema import outbox as outbox_table
from tests.support.ledgers import BUNDLE, NODE, join

IMAGE = "1.2.3.1"
SOURCE = "1.2.3.9"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url)
    join(opened)
    yield opened
    opened.close()


def stored(uid: str, content: str = "a", at: float = 1.0) -> StoredInstance:
    return StoredInstance(
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.1.2",
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        digest=content * 64,
        size=100,
        path=f"instances/{uid}-{content}.dcm",
        calling_ae="MODALITY",
        received_at=at,
    )


def report(uid: str) -> outbox.Report:
    return outbox.Report(
        "tid1500", "1.2.840.10008.5.1.4.1.1.88.34", uid, "1.2.3", f"{uid}.1", "1.2.840.10008.1.2.1", uid, 10
    )


def lesion_job(ledger: Ledger, needed: tuple[str, ...] = (IMAGE,), now: float = 1.0) -> int:
    with ledger.write() as connection:
        _, instance_id = instances.record(connection, stored(SOURCE))
        return jobs.create(connection, instance_id, SOURCE, needed, BUNDLE, now)


def arrive(ledger: Ledger, instance: StoredInstance) -> Arrival:
    with ledger.write() as connection:
        arrival, _ = instances.record(connection, instance)
        if arrival is Arrival.CHANGED:
            jobs.input_changed(connection, instance.sop_instance_uid, instance.received_at)
        jobs.promote(connection, jobs.needing(connection, instance.sop_instance_uid), instance.received_at)
    return arrival


def state_of(ledger: Ledger, job_id: int) -> str:
    with ledger.read() as connection:
        return connection.execute(select(job_table.c.state).where(job_table.c.id == job_id)).scalar_one()


def claim_one(ledger: Ledger, now: float = 10.0):  # type: ignore[no-untyped-def]
    with ledger.write() as connection:
        (row,) = job_claims.claim(connection, NODE, 1, now)
    return row


def test_migrations_give_exactly_the_schema(ledger: Ledger) -> None:
    with ledger.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    Ledger(url).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="newer"):
        Ledger(url)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


def test_rows_survive_power_loss_settings(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with ledger.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    ledger.close()


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.write() as connection:
        instances.record(connection, stored(IMAGE))
        raise RuntimeError
    with ledger.read() as connection:
        assert instances.received(connection) == 0


def test_same_content_is_a_duplicate_and_other_content_supersedes(ledger: Ledger) -> None:
    assert arrive(ledger, stored(IMAGE, "a")) is Arrival.NEW
    assert arrive(ledger, stored(IMAGE, "a")) is Arrival.DUPLICATE
    assert arrive(ledger, stored(IMAGE, "b")) is Arrival.CHANGED
    assert arrive(ledger, stored(IMAGE, "a")) is Arrival.DUPLICATE, "a late re-send does not bring old content back"
    with ledger.read() as connection:
        assert instances.current(connection, [IMAGE])[IMAGE].digest == "b" * 64
        assert instances.received(connection) == 4


@pytest.mark.parametrize("image_first", [True, False])
def test_a_job_is_ready_when_all_it_needs_is_here_in_any_order(ledger: Ledger, image_first: bool) -> None:
    if image_first:
        arrive(ledger, stored(IMAGE))
        assert state_of(ledger, lesion_job(ledger)) == "ready"
    else:
        job = lesion_job(ledger, (IMAGE, "1.2.3.2"))
        assert state_of(ledger, job) == "waiting"
        arrive(ledger, stored(IMAGE))
        assert state_of(ledger, job) == "waiting"
        arrive(ledger, stored("1.2.3.2"))
        assert state_of(ledger, job) == "ready"


def test_a_job_passes_through_to_done(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        assert job_claims.sending(connection, row, {"lesions": []}, 11.0)
        assert outbox.put(connection, job, SOURCE, [report("2.25.1")], 11.0) == 1
    assert state_of(ledger, job) == "sending"
    with ledger.write() as connection:
        (item,) = outbox.claim(connection, NODE, 11.0, 10)
        outbox.retry_at(connection, item.id, 50.0, 0xA700, "out of resources", NODE)
        assert list(outbox.claim(connection, NODE, 49.9, 10)) == []
        assert outbox.next_attempt(connection, NODE, OutboxState.QUEUED) == 50.0
        (item,) = outbox.claim(connection, NODE, 50.0, 10)
        outbox.stored(connection, item.id, 0, None, 51.0, NODE)
    assert state_of(ledger, job) == "done"


def test_work_on_an_input_that_changed_meanwhile_is_dropped_and_done_again(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE, "a"))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    arrive(ledger, stored(IMAGE, "b", at=12.0))
    with ledger.write() as connection:
        assert not job_claims.sending(connection, row, {}, 13.0)
    assert state_of(ledger, job) == "ready"


def test_a_done_job_is_done_again_when_its_image_is_replaced(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE, "a"))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        job_claims.done(connection, row, "nothing to classify", None, 11.0)
    arrive(ledger, stored(IMAGE, "a"))
    assert state_of(ledger, job) == "done", "the same content is no new work"
    arrive(ledger, stored(IMAGE, "b"))
    assert state_of(ledger, job) == "ready"


def test_a_replaced_lesion_object_stops_unfinished_work_on_the_old_one(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    old = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        _, instance_id = instances.record(connection, stored(SOURCE, "b"))
        jobs.supersede(connection, SOURCE, keep_instance=instance_id, now=12.0)
        new = jobs.create(connection, instance_id, SOURCE, (IMAGE,), BUNDLE, 12.0)
    with ledger.write() as connection:
        assert not job_claims.sending(connection, row, {}, 13.0)
    assert (state_of(ledger, old), state_of(ledger, new)) == ("superseded", "ready")


def done_twice(ledger: Ledger) -> tuple[int, int]:
    """The job of a lesion object, and that of its second version, each done."""
    arrive(ledger, stored(IMAGE))
    ids = []
    for content in "ab":
        with ledger.write() as connection:
            _, instance_id = instances.record(connection, stored(SOURCE, content))
            ids.append(jobs.create(connection, instance_id, SOURCE, (IMAGE,), BUNDLE, 1.0))
        row = claim_one(ledger)
        with ledger.write() as connection:
            job_claims.sending(connection, row, {}, 11.0)
            outbox.put(connection, row.id, SOURCE, [report(f"2.25.{row.id}")], 11.0)
            (item,) = outbox.claim(connection, NODE, 11.0, 10)
            outbox.stored(connection, item.id, 0, None, 11.0, NODE)
    return ids[0], ids[1]


def test_a_replaced_image_starts_no_work_on_a_lesion_object_that_was_replaced(ledger: Ledger) -> None:
    old, new = done_twice(ledger)
    arrive(ledger, stored(IMAGE, "b", at=12.0))
    assert (state_of(ledger, old), state_of(ledger, new)) == ("done", "ready")


@pytest.mark.parametrize("ended", [JobState.QUARANTINED, JobState.FAILED])
def test_a_retry_starts_no_work_on_a_lesion_object_that_was_replaced(ledger: Ledger, ended: JobState) -> None:
    old, _ = done_twice(ledger)
    with ledger.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == old).values(state=ended))
        connection.execute(update(outbox_table).where(outbox_table.c.job_id == old).values(state="failed"))
        assert jobs.retry(connection, old, 13.0) == "superseded"
        assert job_claims.claim(connection, NODE, 9, 14.0) == outbox.claim(connection, NODE, 14.0, 9) == []


def test_the_same_report_twice_is_queued_once(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE, "a"))
    job = lesion_job(ledger)
    for content, expected in (("a", 1), ("b", 0)):
        arrive(ledger, stored(IMAGE, content))
        row = claim_one(ledger)
        with ledger.write() as connection:
            job_claims.sending(connection, row, {}, 11.0)
            assert outbox.put(connection, job, SOURCE, [report("2.25.1")], 11.0) == expected
            for item in outbox.claim(connection, NODE, 11.0, 10):
                outbox.stored(connection, item.id, 0, None, 11.0, NODE)
        assert state_of(ledger, job) == "done"


def test_a_job_that_comes_to_the_report_of_an_older_one_ends_by_what_becomes_of_it(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    old = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        job_claims.sending(connection, row, {}, 11.0)
        outbox.put(connection, old, SOURCE, [report("2.25.1")], 11.0)
        _, instance_id = instances.record(connection, stored(SOURCE, "b"))
        new = jobs.create(connection, instance_id, SOURCE, (IMAGE,), BUNDLE, 12.0)
    row = claim_one(ledger, 12.0)
    with ledger.write() as connection:
        job_claims.sending(connection, row, {}, 12.0)
        assert outbox.put(connection, new, SOURCE, [report("2.25.1")], 12.0) == 0
        reason = connection.execute(select(job_table.c.reason).where(job_table.c.id == old)).scalar_one()
        (item,) = outbox.claim(connection, NODE, 12.0, 10)
    assert (state_of(ledger, old), state_of(ledger, new)) == ("done", "sending")
    assert f"job {new}" in reason
    with ledger.write() as connection:
        outbox.failed(connection, item.id, 0xC000, "cannot understand", 13.0, NODE)
    assert state_of(ledger, new) == "failed"
    with ledger.write() as connection:
        assert jobs.retry(connection, new, 14.0) == "sending"
        (item,) = outbox.claim(connection, NODE, 14.0, 10)
        outbox.stored(connection, item.id, 0, None, 15.0, NODE)
    assert state_of(ledger, new) == "done"


def test_recovery_takes_up_what_ran_and_gives_up_on_what_always_dies(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    job = lesion_job(ledger)
    for _ in range(job_claims.MAX_ATTEMPTS):
        claim_one(ledger, 100.0)
        with ledger.write() as connection:
            taken = nodes.take_over(connection, [NODE], 100.0)
        assert taken.jobs == 1
        join(ledger)
    assert state_of(ledger, job) == "quarantined"
    with ledger.write() as connection:
        assert jobs.retry(connection, job, 101.0) == "ready"


def test_unfinished_work_moves_to_the_bundle_that_is_loaded(ledger: Ledger) -> None:
    job = lesion_job(ledger)
    with ledger.write() as connection:
        job_claims.move_to_bundle(connection, "c" * 64)
    with ledger.read() as connection:
        assert connection.execute(select(job_table.c.bundle).where(job_table.c.id == job)).scalar_one() == "c" * 64


def test_a_refused_report_fails_the_job_until_an_operator_retries(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        job_claims.sending(connection, row, {}, 11.0)
        outbox.put(connection, job, SOURCE, [report("2.25.1")], 11.0)
        (item,) = outbox.claim(connection, NODE, 11.0, 10)
        outbox.failed(connection, item.id, 0xC000, "cannot understand", 12.0, NODE)
    assert state_of(ledger, job) == "failed"
    with ledger.write() as connection:
        assert jobs.retry(connection, job, 13.0) == "sending"
        (item,) = outbox.claim(connection, NODE, 13.0, 10)
        outbox.stored(connection, item.id, 0, None, 14.0, NODE)
    assert state_of(ledger, job) == "done"


def test_every_object_of_a_kind_counts_and_none_of_an_older_edition(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE, "a"))
    job = lesion_job(ledger)

    def put(at: float, *uids: str) -> list[int]:
        row = claim_one(ledger)
        with ledger.write() as connection:
            job_claims.sending(connection, row, {}, at)
            outbox.put(connection, job, SOURCE, [report(uid) for uid in uids], at)
            return [item.id for item in outbox.claim(connection, NODE, at, 10)]

    first, second = put(11.0, "2.25.1", "2.25.2")
    with ledger.write() as connection:
        outbox.failed(connection, first, 0xC000, "cannot understand", 12.0, NODE)
    assert state_of(ledger, job) == "sending"
    with ledger.write() as connection:
        outbox.stored(connection, second, 0, None, 13.0, NODE)
    assert state_of(ledger, job) == "failed", "the other object of the kind was refused"
    arrive(ledger, stored(IMAGE, "b"))
    (third,) = put(14.0, "2.25.3")
    with ledger.write() as connection:
        outbox.stored(connection, third, 0, None, 15.0, NODE)
    assert state_of(ledger, job) == "done", "what was refused is replaced"


def test_retention_takes_what_is_finished_and_leaves_what_is_not(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE, at=1.0))
    arrive(ledger, stored("1.2.3.77", at=1.0))
    done = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        job_claims.done(connection, row, "nothing to classify", None, 2.0)
        _, other = instances.record(connection, stored("1.2.3.8", at=1.0))
        waiting = jobs.create(connection, other, "1.2.3.8", ("1.2.3.77", "1.2.3.78"), BUNDLE, 1.0)
    with ledger.write() as connection:
        jobs.delete_finished(connection, 100.0, [JobState.DONE])
        gone = instances.delete_older_than(connection, 100.0)
    assert sorted(gone) == [f"instances/{IMAGE}-a.dcm", f"instances/{SOURCE}-a.dcm"]
    assert state_of(ledger, waiting) == "waiting"
    with ledger.read() as connection:
        assert connection.execute(select(job_table.c.id).where(job_table.c.id == done)).all() == []


def test_a_report_of_a_failure_goes_out_and_is_not_forgotten_before(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        assert job_claims.quarantine(connection, row, "cannot be used", 11.0)
        outbox.put(connection, job, SOURCE, [report("2.25.1")], 11.0)
        assert jobs.delete_finished(connection, 100.0, [JobState.QUARANTINED]) == [], "its report is not stored yet"
        (item,) = outbox.claim(connection, NODE, 11.0, 10)
        outbox.stored(connection, item.id, 0, None, 12.0, NODE)
    assert state_of(ledger, job) == "quarantined"
    with ledger.write() as connection:
        assert jobs.delete_finished(connection, 100.0, [JobState.QUARANTINED]) == ["2.25.1"]


def test_a_job_keeps_why_its_report_holds_no_result(ledger: Ledger) -> None:
    arrive(ledger, stored(IMAGE))
    job = lesion_job(ledger)
    row = claim_one(ledger)
    with ledger.write() as connection:
        job_claims.sending(connection, row, {}, 11.0, reason="nothing to classify")
        outbox.put(connection, job, SOURCE, [report("2.25.1")], 11.0)
        (item,) = outbox.claim(connection, NODE, 11.0, 10)
        outbox.stored(connection, item.id, 0, None, 12.0, NODE)
        (ended,) = connection.execute(select(job_table.c.state, job_table.c.reason)).all()
    assert tuple(ended) == ("done", "nothing to classify")


def test_a_job_that_waits_is_asked_for_after_its_time_and_again_later(ledger: Ledger) -> None:
    job = lesion_job(ledger, (IMAGE, "1.2.3.2"), now=100.0)
    arrive(ledger, stored("1.2.3.2"))
    with ledger.write() as connection:
        assert jobs.waiting_for(connection, 99.0, 1000.0, 10) == []
        (row,) = jobs.waiting_for(connection, 100.0, 1000.0, 10)
        assert (row.job_id, row.sop_instance_uid) == (job, IMAGE)
        jobs.asked(connection, job, 2000.0, "the archive does not have it")
        assert jobs.waiting_for(connection, 100.0, 1999.0, 10) == []
        assert len(jobs.waiting_for(connection, 100.0, 2000.0, 10)) == 1


class LedgerMachine(RuleBasedStateMachine):
    """Any order of arrivals, claims, ends, crashes and answers of the archive keeps the ledger's promises."""

    url: str  # of an empty ledger or of one that an earlier run used

    @initialize()
    def open(self) -> None:
        self.ledger = Ledger(self.url)
        with self.ledger.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        join(self.ledger)
        self.now = 1.0
        self.running: list = []
        self.image("a")
        self.lesion_object("a")

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(content=st.sampled_from("ab"))
    def image(self, content: str) -> None:
        arrive(self.ledger, stored(IMAGE, content, self.tick()))

    @rule(content=st.sampled_from("ab"))
    def lesion_object(self, content: str) -> None:
        now = self.tick()
        with self.ledger.write() as connection:
            arrival, instance_id = instances.record(connection, stored(SOURCE, content, now))
            if arrival is Arrival.DUPLICATE:
                return
            jobs.supersede(connection, SOURCE, keep_instance=instance_id, now=now)
            jobs.create(connection, instance_id, SOURCE, (IMAGE,), BUNDLE, now)

    @rule()
    def claim(self) -> None:
        with self.ledger.write() as connection:
            self.running += [
                (row, self._seen(connection)) for row in job_claims.claim(connection, NODE, 1, self.tick())
            ]

    def _seen(self, connection) -> tuple[str, str]:  # type: ignore[no-untyped-def]
        rows = instances.current(connection, [IMAGE, SOURCE])
        return rows[SOURCE].digest, rows[IMAGE].digest

    @rule()
    def finish(self) -> None:
        if not self.running:
            return
        row, seen = self.running.pop(0)
        now = self.tick()
        with self.ledger.write() as connection:
            if job_claims.sending(connection, row, {}, now):
                outbox.put(connection, row.id, SOURCE, [report(f"2.25.{hash(seen) % 10**9}")], now)
                assert seen == self._seen(connection), "a report was made from inputs that are not the current ones"

    @rule()
    def crash(self) -> None:
        self.running.clear()
        with self.ledger.write() as connection:
            nodes.take_over(connection, [NODE], self.tick())
        join(self.ledger)

    @rule(answer=st.sampled_from(["stored", "retry", "failed"]))
    def archive_answers(self, answer: str) -> None:
        now = self.tick()
        with self.ledger.write() as connection:
            for item in outbox.claim(connection, NODE, now, 1):
                if answer == "stored":
                    outbox.stored(connection, item.id, 0, None, now, NODE)
                elif answer == "failed":
                    outbox.failed(connection, item.id, 0xC000, "no", now, NODE)
                else:
                    outbox.retry_at(connection, item.id, now + 2, None, "later", NODE)

    @rule()
    def operator_retries(self) -> None:
        with self.ledger.write() as connection:
            for row in connection.execute(select(job_table).where(job_table.c.state.in_(["failed", "quarantined"]))):
                assert jobs.retry(connection, row.id, self.tick()) in ("ready", "waiting", "sending", "superseded")

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with self.ledger.read() as connection:
            current = connection.execute(
                select(instance_table.c.sop_instance_uid).where(instance_table.c.state == "current")
            ).scalars()
            uids = list(current)
            assert len(uids) == len(set(uids)), "one current version of an instance"
            for job in connection.execute(select(job_table)):
                rows = connection.execute(select(outbox_table).where(outbox_table.c.job_id == job.id)).all()
                items = {item.state for item in rows}
                last = max((item.created_at for item in rows), default=None)
                if job.state == "sending":
                    assert "queued" in items, "a sending job has something to send"
                if job.state == "done":
                    assert "queued" not in items, "done means that nothing is left to send"
                    newest = {item.state for item in rows if item.created_at == last}
                    assert "failed" not in newest, "done means that the archive has all of it"
                if job.state == "ready":
                    assert IMAGE in uids, "a ready job has its image"

    def teardown(self) -> None:
        """From any state, with the archive well again, every job comes to an end."""
        if not hasattr(self, "ledger"):
            return
        self.operator_retries()
        for _ in range(20):
            self.claim()
            self.finish()
            self.now += 10
            self.archive_answers("stored")
        with self.ledger.read() as connection:
            left = [row.state for row in connection.execute(select(job_table))]
        self.ledger.close()
        assert set(left) <= {"done", "superseded", "waiting"}, left


def test_any_order_keeps_the_promises(ledger_url: str) -> None:
    examples = 40 if ledger_url.startswith("sqlite") else 15

    class Machine(LedgerMachine):
        url = ledger_url

    run_state_machine_as_test(
        Machine, settings=hypothesis_settings(max_examples=examples, stateful_step_count=20, deadline=None)
    )
