"""A failure that is not the job's costs it no attempt; its own failures end in quarantine after three."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row
from sqlalchemy.exc import OperationalError

from config.settings import Settings
from daemon.errors import ClassifierError, ClassifierUnavailable, DecoderKilled
from daemon.jobs import job_runner as job_module
from daemon.jobs.job_runner import JobRunner
from daemon.ledger import Ledger, instances, job_claims, jobs
from daemon.ledger.instances import StoredInstance
from daemon.storage.spool import Spool
from tests.support.ledgers import NODE, join

LATER = 1e9
PASSING = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "no classifier": ClassifierUnavailable("the classifier cannot start"),
    "ledger locked": OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked")),
}


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def classify(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(job_module, "load_inputs", lambda *_: None)
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(opened)
    with opened.write() as connection:
        instance = StoredInstance("1.5", "1.2", "1.2", "1.2", "1.2", "d", 1, "p", "TESTS", 1.0)
        _, row = instances.record(connection, instance)
        jobs.create(connection, row, "1.5", (), "bundle", 1.0)
    yield opened
    opened.close()


def attempt(ledger: Ledger, worker: JobRunner) -> Row:
    """Claim the job, do it as the dispatcher does, and take up what had no end; the job's row."""
    with ledger.write() as connection:
        (claimed,) = job_claims.claim(connection, NODE, 1, time.time() + LATER)
    try:
        worker.run(claimed)
    except OperationalError:
        with ledger.write() as connection:
            job_claims.release(connection, NODE, [], time.time())
    with ledger.read() as connection:
        return connection.exec_driver_sql("SELECT state, attempts, reason, not_before FROM jobs").one()


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_costs_no_attempt(what: str, ledger: Ledger, tmp_path: Path) -> None:
    worker = JobRunner(lambda: Settings(), ledger, Spool(tmp_path / "spool"), Failing(PASSING[what]))  # type: ignore[arg-type]
    for _ in range(8):
        row = attempt(ledger, worker)
        assert (row.state, row.attempts) == ("ready", 0)


@pytest.mark.parametrize(
    "error", [ClassifierError("the classifier died on this ROI"), DecoderKilled("the decoding process was killed")]
)
def test_what_does_not_pass_ends_in_quarantine(error: Exception, ledger: Ledger, tmp_path: Path) -> None:
    failing: Any = Failing(error)
    worker = JobRunner(lambda: Settings(), ledger, Spool(tmp_path / "spool"), failing)
    states = [attempt(ledger, worker).state for _ in range(3)]
    assert states == ["ready", "ready", "quarantined"]
