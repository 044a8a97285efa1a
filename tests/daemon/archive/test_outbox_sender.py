"""The sender: back-off, and each outcome in the ledger as soon as it is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import evt
from sqlalchemy import select, update

from config.settings import Archive as ArchiveSettings
from daemon.archive.outbox_sender import SendSummary, retry_backoff, send_due
from daemon.archive.store_status import OutgoingInstance
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.ledger import Ledger, instances, jobs, outbox, schema
from daemon.ledger.instances import StoredInstance
from daemon.ledger.outbox import Report
from daemon.ledger.schema import JobState, OutboxState
from daemon.system.backoff import Backoff
from tests.support.archive_stubs import archive, outgoing, stub
from tests.support.ledgers import NODE, hold, join
from tests.support.peers.programs import free_port, wait_until

STORED, RETRY, FAILED = StoreOutcomeKind.STORED, StoreOutcomeKind.RETRY, StoreOutcomeKind.FAILED
SETTINGS = ArchiveSettings(retry_first_s=10, retry_max_s=900)


@pytest.mark.parametrize(("attempts", "longest"), [(0, 10), (1, 20), (2, 40), (6, 640), (7, 900), (100_000, 900)])
def test_waits_double_up_to_the_longest(attempts: int, longest: float) -> None:
    assert retry_backoff(SETTINGS).jittered_pause_s(attempts, jitter=lambda: 1.0) == longest
    assert retry_backoff(SETTINGS).jittered_pause_s(attempts, jitter=lambda: 0.0) == longest / 2


@given(st.integers(0, 10_000), st.floats(0.001, 1e4), st.floats(0.001, 1e6))
def test_a_wait_is_never_nothing_and_never_past_the_longest(attempts: int, first_s: float, longest_s: float) -> None:
    assert 0 < Backoff(first_s, longest_s).jittered_pause_s(attempts) <= longest_s


def test_waits_differ_by_chance() -> None:
    assert len({retry_backoff(SETTINGS).jittered_pause_s(3) for _ in range(20)}) > 10


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(opened)
    yield opened
    opened.close()


def queue(ledger: Ledger, item: OutgoingInstance, now: float) -> None:
    """A job that is sending `item`, which lies in the outbox since `now`."""
    source = f"{item.sop_instance_uid}.1"
    syntax = item.transfer_syntax_uid
    with ledger.write() as connection:
        arrived = StoredInstance(source, "1.2", "1.2", "1.2", syntax, source, 1, source, "TESTS", now)
        _, instance_id = instances.record(connection, arrived)
        job_id = jobs.create(connection, instance_id, source, (), "bundle", now)
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(state=JobState.SENDING))
        report = Report("tid1500", item.sop_class_uid, item.sop_instance_uid, "1.2", "1.2", syntax, item.path.name, 1)
        outbox.put(connection, job_id, source, [report], now)


def states(ledger: Ledger) -> dict[str, tuple[str, str, int, int | None]]:
    """SOP Instance UID -> (outbox state, job state, attempts, status)."""
    box, job = schema.outbox.c, schema.jobs.c
    with ledger.read() as connection:
        rows = connection.execute(
            select(box.sop_instance_uid, box.state, job.state, box.attempts, box.status).join(
                schema.jobs, job.id == box.job_id
            )
        )
        return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


class Answers:
    """An archive that gives the outcomes of `kinds` in turn, and keeps what it was asked to store."""

    def __init__(self, *kinds: StoreOutcomeKind, then: Callable[[], None] = lambda: None) -> None:
        self.kinds = kinds
        self.then = then
        self.asked: list[str] = []

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        for kind, item in zip(self.kinds, items, strict=True):
            self.asked.append(item.sop_instance_uid)
            yield StoreOutcome(item.sop_instance_uid, kind, 0xA700 if kind is RETRY else None, "because")
            self.then()


def test_each_outcome_ends_in_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(3)]
    for number, item in enumerate(items):
        queue(ledger, item, now=100.0 + number)
    began = time.time()
    assert send_due(ledger, hold(), Answers(STORED, RETRY, FAILED), SETTINGS, tmp_path.joinpath) == SendSummary(1, 1, 1)
    stored, retried, failed = (states(ledger)[item.sop_instance_uid] for item in items)
    assert stored == ("stored", "done", 1, None)
    assert retried == ("queued", "sending", 1, 0xA700)
    assert failed == ("failed", "failed", 1, None)
    with ledger.read() as connection:
        again = outbox.next_attempt(connection, NODE, OutboxState.QUEUED)
    assert again is not None
    assert began + 5 <= again <= time.time() + 10  # first wait: half of 10 s to 10 s


def test_nothing_is_sent_before_it_is_due(ledger: Ledger, tmp_path: Path) -> None:
    queue(ledger, outgoing(tmp_path), now=time.time() + 60)
    archive = Answers()
    assert send_due(ledger, hold(), archive, SETTINGS, tmp_path.joinpath) == SendSummary()
    assert archive.asked == []


def test_an_outcome_is_recorded_before_the_next_report_leaves(ledger: Ledger, tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(2)]
    for number, item in enumerate(items):
        queue(ledger, item, now=100.0 + number)

    def end() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send_due(ledger, hold(), Answers(STORED, STORED, then=end), SETTINGS, tmp_path.joinpath)
    assert [states(ledger)[item.sop_instance_uid][0] for item in items] == ["stored", "queued"]


def test_those_tried_least_often_go_first(ledger: Ledger, tmp_path: Path) -> None:
    often, never, once = (outgoing(tmp_path) for _ in range(3))
    for attempts, item in ((9, often), (0, never), (1, once)):
        queue(ledger, item, now=100.0)
        with ledger.write() as connection:
            mine = schema.outbox.c.sop_instance_uid == item.sop_instance_uid
            connection.execute(update(schema.outbox).where(mine).values(attempts=attempts))
    archive = Answers(STORED, STORED, STORED)
    send_due(ledger, hold(), archive, SETTINGS, tmp_path.joinpath)
    assert archive.asked == [item.sop_instance_uid for item in (never, once, often)]


def test_an_archive_that_is_down_delays_and_loses_none(ledger: Ledger, tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(3)]
    for item in items:
        queue(ledger, item, now=100.0)
    down = archive(free_port(), tmp_path)
    for _ in range(3):
        assert send_due(ledger, hold(), down, SETTINGS, tmp_path.joinpath) == SendSummary(retried=3)
        with ledger.write() as connection:
            connection.execute(update(schema.outbox).values(next_attempt_at=0.0))
    received = []
    with stub(lambda event: received.append(str(event.request.AffectedSOPInstanceUID)) or 0x0000) as port:
        up = archive(port, tmp_path)
        assert send_due(ledger, hold(), up, SETTINGS, tmp_path.joinpath) == SendSummary(stored=3)
        assert send_due(ledger, hold(), up, SETTINGS, tmp_path.joinpath) == SendSummary()
    assert sorted(received) == sorted(item.sop_instance_uid for item in items)
    assert set(states(ledger).values()) == {("stored", "done", 4, 0x0000)}


@pytest.mark.parametrize("stop_after", [1, None])
def test_the_association_is_released_after_the_last_report_and_at_a_stop(
    stop_after: int | None, ledger: Ledger, tmp_path: Path
) -> None:
    for number in range(2):
        queue(ledger, outgoing(tmp_path), now=100.0 + number)
    sent: list[str] = []
    ends: list[str] = []
    handlers = (
        (evt.EVT_RELEASED, lambda event: ends.append("released")),
        (evt.EVT_ABORTED, lambda event: ends.append("aborted")),
    )
    with stub(handlers=handlers) as port:
        send_due(
            ledger,
            hold(),
            archive(port, tmp_path),
            SETTINGS,
            tmp_path.joinpath,
            on_sent=lambda row, outcome: sent.append(outcome.sop_instance_uid),
            stopping=lambda: len(sent) == stop_after,
        )
        wait_until(lambda: ends, "the end of the association")
    assert (len(sent), ends) == (stop_after or 2, ["released"])
