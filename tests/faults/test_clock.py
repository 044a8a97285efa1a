"""A clock that is set back by an hour holds nothing up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import update

from config.settings import Settings
from daemon.ledger import Ledger, instances, job_claims, jobs, outbox, schema
from daemon.ledger.instances import StoredInstance
from daemon.maintenance.periodic_tasks import PeriodicTasks
from daemon.service import Service as MammodService
from daemon.system.clock_watch import ClockWatch
from tests.daemon.archive.test_outbox_sender import queue
from tests.support.archive_stubs import outgoing
from tests.support.cases import Case
from tests.support.ledgers import NODE, join
from tests.support.peers.archives import running_storescp
from tests.support.peers.programs import dcmsend, free_port, wait_until
from tests.support.services import Service

HOUR = 3600.0


def test_only_a_step_back_counts() -> None:
    now = {"wall": 1000.0, "steady": 5.0}
    watch = ClockWatch(lambda: now["wall"], lambda: now["steady"])

    def pass_by(steady: float, wall: float) -> float:
        now["steady"] += steady
        now["wall"] += wall
        return watch.set_back()

    assert pass_by(1, 1) == 0
    assert pass_by(1, 0.9995) == 0, "slewing"
    assert pass_by(1, HOUR) == 0, "a step forward"
    assert pass_by(1, 1 - HOUR) == pytest.approx(HOUR)
    assert pass_by(1, 1) == 0, "it is said once"


def test_what_waits_for_a_time_of_the_earlier_clock_is_due(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(ledger)
    now = 100_000.0
    queue(ledger, outgoing(tmp_path), now + HOUR)
    with ledger.write() as connection:
        waiting = StoredInstance("1.5", "1.2", "1.2", "1.2", "1.2", "d", 1, "p", "TESTS", now + HOUR)
        _, row = instances.record(connection, waiting)
        jobs.create(connection, row, "1.5", (), "bundle", now + HOUR)
        lacking = StoredInstance("1.6", "1.2", "1.2", "1.2", "1.2", "e", 1, "q", "TESTS", now + HOUR)
        _, row = instances.record(connection, lacking)
        jobs.create(connection, row, "1.6", ("1.7",), "bundle", now + HOUR)
        assert job_claims.claim(connection, NODE, 9, now) == []
        assert list(outbox.claim(connection, NODE, now, 9)) == []
        assert jobs.due_now(connection, now) == 2
        assert outbox.due_now(connection, now, max_commitment_wait_s=60) == 1
        assert [job.source_uid for job in job_claims.claim(connection, NODE, 9, now)] == ["1.5"]
        assert len(outbox.claim(connection, NODE, now, 9)) == 1
        asked = jobs.waiting_for(connection, now - 60, now, 9)
        assert [item.sop_instance_uid for item in asked] == ["1.7"], "retrieval does not wait for its hour either"
    ledger.close()


def test_what_was_just_run_does_not_keep_the_rest_from_being_due(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = "ledger node spool archive settings intake audit bundle_watch observation on_ready"
    schedule = PeriodicTasks(**{name: Mock() for name in parts.split()})
    scheduler = schedule._scheduler
    scheduler.start(paused=True)
    once, other = (scheduler.add_job(print, "interval", hours=9, id=name) for name in ("once", "other"))
    listed = scheduler.get_jobs()
    monkeypatch.setattr(scheduler, "get_jobs", lambda: listed)
    once.remove()
    try:
        schedule.all_now()
        assert other.next_run_time <= datetime.now(UTC)
    finally:
        schedule.stop()


def test_the_ledger_the_jobs_and_the_reports_are_told_of_it(tmp_path: Path) -> None:
    service = MammodService(Settings(), None, False)
    service._parts = parts = Mock(ledger=Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    try:
        assert service._make_all_due(HOUR)
    finally:
        parts.ledger.close()
    parts.tasks.all_now.assert_called_once_with()
    parts.dispatcher.wake.assert_called_once_with()
    parts.sending.wake.assert_called_once_with()


@pytest.mark.peers
def test_the_service_goes_on_when_its_clock_is_set_back(
    new_service: Callable[..., Service], case: Case, tmp_path: Path
) -> None:
    port = free_port()
    offset = tmp_path / "offset"
    offset.write_text("0")
    service = new_service(("STORESCP", port))
    service.environment["MAMMOD_TEST_CLOCK"] = str(offset)
    service.start()
    dcmsend(case.files, service.host, service.port, service.aet)
    wait_until(lambda: [item.attempts >= 1 for item in service.outbox()] == [True], "an attempt", 60)
    _replace(offset, str(-HOUR))
    wait_until(lambda: "clock set back" in service.log, "the step back seen", 60)
    (item,) = service.outbox()
    assert item.next_attempt_at < time.time() - HOUR / 2, "the service's clock is an hour behind"
    with running_storescp(tmp_path / "late", port=port) as late:
        service.wait_jobs("done")
        assert len(late.files()) == 1
    assert service.stop() == 0


def _replace(file: Path, text: str) -> None:
    """Never half written for who reads it."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


def test_a_restart_after_the_clock_was_set_back(tmp_path: Path) -> None:
    """What `recover` calls; times that an earlier clock named are not waited for."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    queue(ledger, outgoing(tmp_path), 10.0)
    with ledger.write() as connection:
        connection.execute(update(schema.outbox).values(next_attempt_at=10 + HOUR, state="committing"))
        assert outbox.due_now(connection, 10.0, max_commitment_wait_s=60) == 1
        assert outbox.next_attempt(connection, NODE, schema.OutboxState.COMMITTING) == 10.0
    ledger.close()
