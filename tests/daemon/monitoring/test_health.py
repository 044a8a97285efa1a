"""Alive and ready, reason by reason; what is remembered of the archive, of callers and of the last hour."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine

from config.settings import Workers
from daemon.errors import ArchiveError, DecoderUnavailable, RefusedInstance
from daemon.events.bus import (
    ArchiveAnswered,
    ArchiveSilent,
    AssociationAccepted,
    InstanceAccepted,
    InstanceAnswered,
    JobAttempted,
    JobOutcome,
    ReportSent,
)
from daemon.events.outcomes import Arrival, Rejection, RejectionKind, StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming
from daemon.ledger import Ledger
from daemon.ledger.summary import urgent_work
from daemon.monitoring.archive_health import ArchiveHealth
from daemon.monitoring.health import LedgerProbe, not_alive, not_ready
from daemon.monitoring.history import History, percentile
from daemon.monitoring.recent_callers import MAX_CALLERS, RecentCallers
from daemon.workers.bundle_source import default_bundle_path
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import load_bundle
from model.errors import ImageError


def test_a_loop_that_stands_still_is_named() -> None:
    assert not_alive({"main_loop": 1.0, "dispatcher": 59.0}) == []
    (reason,) = not_alive({"main_loop": 1.0, "dispatcher": 61.4})
    assert reason == "the dispatcher has not moved for 61 s: restart the service, and keep its log"


def test_every_reason_against_being_ready_is_told() -> None:
    def full() -> None:
        raise RefusedInstance(0xA700, "the spool has 1 MiB free")

    def gone() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    fine: dict[str, str | None] = {"decoder": None, "classifier": None}
    assert not_ready(None, lambda: None, None, fine) == []
    assert not_ready("draining", full, "the ledger is stuck", {**fine, "classifier": "it cannot start"}) == [
        "the service is draining",
        "the spool has 1 MiB free",
        "the ledger is stuck",
        "classifiers: it cannot start",
    ]
    assert not_ready(None, gone, None, fine) == ["the spool cannot be read: No such file or directory"]


def test_a_ledger_that_takes_no_write_is_found_out_and_one_stuck_probe_is_enough(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    probe = LedgerProbe(ledger)
    assert probe.problem() is None
    with ledger._writer:
        assert probe.problem(0.1) == "the ledger did not take a write within 0.1 s"
        stuck = probe._thread
        assert probe.problem(0.1) is not None and probe._thread is stuck
    assert stuck is not None
    stuck.join(10)
    assert probe.problem() is None
    ledger.close()
    with create_engine(f"sqlite:///{tmp_path / 'ledger.sqlite'}").begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO gone")
    problem = probe.problem()
    assert problem is not None and problem.startswith("the ledger cannot be written (OperationalError")


def test_decoders_that_cannot_be_started_say_so_until_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = DecoderPool(1, load_bundle(default_bundle_path()).manifest, Workers())
    answers: list[Exception] = [DecoderUnavailable("no process can be started"), ImageError("too large")]

    def do(*_: object) -> None:
        raise answers.pop(0)

    monkeypatch.setattr(pool._decoders[0], "run", do)
    with pytest.raises(DecoderUnavailable):
        pool._run(len)
    assert pool.trouble == "no process can be started"
    with pytest.raises(ImageError):
        pool._run(len)
    assert pool.trouble is None, "there was a process: the object was at fault"
    assert (pool.alive, pool.expected, pool.waiting) == (0, 1, 0)


class Answering:
    """An archive that answers C-ECHO by what is told of it."""

    def __init__(self, record: Callable[[ArchiveAnswered | ArchiveSilent], None]) -> None:
        self.record = record
        self.reason: str | None = None
        self.asked = 0

    def echo(self) -> None:
        self.asked += 1
        if self.reason:
            self.record(ArchiveSilent(self.reason))
            raise ArchiveError(self.reason)
        self.record(ArchiveAnswered())


def test_the_archive_is_asked_only_where_it_answered_nothing_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    health = ArchiveHealth()
    archive = Answering(health.record)
    assert health.health.up is None
    health.probe(archive)  # type: ignore[arg-type]
    assert health.health.up and health.health.last_answer == 1000.0
    clock[0] += 59
    health.probe(archive)  # type: ignore[arg-type]
    assert archive.asked == 1
    clock[0] += 1
    archive.reason = "it cannot be reached"
    for _ in range(3):
        health.probe(archive)  # type: ignore[arg-type]
    assert archive.asked == 4 and health.health.up is False
    assert (health.health.failures_in_a_row, health.health.problem) == (3, "it cannot be reached")
    assert health.health.last_answer == 1000.0
    clock[0] = 900.0  # set back
    archive.reason = None
    health.probe(archive)  # type: ignore[arg-type]
    assert health.health.up and health.health.failures_in_a_row == 0 and health.health.problem is None
    health.record(ReportSent("tid1500", StoreOutcomeKind.RETRY))
    assert health.health.last_stored is None
    health.record(ReportSent("tid1500", StoreOutcomeKind.STORED))
    assert health.health.last_stored == 900.0


def test_callers_are_counted_and_strangers_are_forgotten_before_friends() -> None:
    callers = RecentCallers()
    callers.record(AssociationAccepted("PACS", "10.0.0.1"))
    callers.record(InstanceAnswered("1.2", 0x0000, "PACS", "10.0.0.1"))
    callers.record(InstanceAnswered("1.2", 0xC000, "PACS", "10.0.0.1"))
    for number in range(2 * MAX_CALLERS):
        callers.record(Rejection(RejectionKind.UNKNOWN_PEER, "10.6.6.6", f"EVIL{number}", "MAMMOD", "no"))
    seen = callers.last()
    assert len(seen) == MAX_CALLERS
    assert seen[0].ae_title == f"EVIL{2 * MAX_CALLERS - 1}" and seen[0].last_rejection == "unknown_peer"
    pacs = seen[-1]
    assert (pacs.ae_title, pacs.accepted, pacs.rejected, pacs.instances, pacs.refused) == ("PACS", 1, 0, 1, 1)


def test_the_last_hour_is_kept_and_no_more(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with ledger.read() as connection:
        nothing = urgent_work(connection)
    ledger.close()
    history = History()
    history.record(InstanceAccepted(Arrival.NEW, 1))
    history.record(JobAttempted(JobOutcome.QUARANTINED, 5))
    history.record(JobAttempted(JobOutcome.CLASSIFIED, 2, 1.0))
    history.record(ReportSent("tid1500", StoreOutcomeKind.RETRY))
    history.record(ReportSent("tid1500", StoreOutcomeKind.STORED))
    for number in range(1000):
        history.sample(nothing, 10.0 * number)
    samples = history.samples()
    assert samples[-1].at - samples[0].at == 3600
    last = samples[-1]
    assert (last.instances, last.lesions, last.reports) == (1, 2, 1)
    assert last.backlog == {"waiting": 0, "ready": 0, "running": 0, "sending": 0}
    history.record_stage(StageTiming(Stage.DECODE, 2.0, 1.0))
    history.record_stage(StageTiming(Stage.DECODE, None, 1.0))  # CPU alone is no passage
    latency = history.latencies()[Stage.DECODE]
    assert latency is not None and (latency.count, latency.p50, latency.p95) == (1, 2.0, 2.0)
    assert history.latencies()[Stage.SEND] is None


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9
    if len(values) % 2:
        assert percentile(ordered, 0.5) == statistics.median(values)
