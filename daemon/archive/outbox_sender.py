"""Sender: takes the reports that are due from the outbox to the archive, and says in the ledger how each fared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import Connection, Row

from config.settings import Archive as ArchiveSettings
from daemon.archive.store_status import OutgoingInstance
from daemon.errors import SpoolUnavailable
from daemon.events import bus
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming, publish
from daemon.ledger import Ledger, outbox
from daemon.ledger.schema import OutboxState
from daemon.nodes.membership import Hold

REPORTS_AT_ONCE = 100
MOST_DOUBLINGS = 60  # 2 to this power times any wait is past every limit

log = structlog.get_logger()


class Store(Protocol):
    """What the sender needs of `daemon.archive.client.Archive`: one outcome per item, in order."""

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]: ...


@dataclass(frozen=True)
class SendSummary:
    """How many reports one call of `send_due` stored, put off, and saw refused for good."""

    stored: int = 0
    retried: int = 0
    failed: int = 0


def next_attempt(attempts: int, first_s: float, longest_s: float, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to wait after `attempts` earlier attempts and one more: exponential, with half of it left to chance.

    Between half and the whole of `first_s` x 2^attempts, and never more than `longest_s`. `jitter` gives 0..1.
    """
    whole = min(first_s * 2.0 ** min(attempts, MOST_DOUBLINGS), longest_s)
    return whole * (0.5 + 0.5 * jitter())


def send_due(
    ledger: Ledger,
    hold: Hold,
    archive: Store,
    settings: ArchiveSettings,
    file_of: Callable[[str], Path],
    on_sent: Callable[[Row, StoreOutcome], None] = lambda *_: None,
    stopping: Callable[[], bool] = lambda: False,
) -> SendSummary:
    """Send what is due and no other node has, at most `REPORTS_AT_ONCE`; each outcome is in the ledger before the next leaves.

    Those tried least often go first, so that one that breaks associations never stands in front of the others.
    `file_of` gives the file of an outbox's path, as `Spool.reading` does; a report whose file cannot be had now is put off.
    `on_sent` is told of each report and its outcome. Once `stopping` says so, or the node has lost its `hold`, no
    further report is sent.
    """
    with ledger.read() as connection:
        due = outbox.next_attempt(connection, hold.id, OutboxState.QUEUED)
    if due is None or due > time.time():
        return SendSummary()
    rows = ledger.transact(lambda connection: outbox.claim(connection, hold.id, time.time(), REPORTS_AT_ONCE))
    if not rows:
        return SendSummary()
    counts = dict.fromkeys(StoreOutcomeKind, 0)
    here, items = [], []
    for row in sorted(rows, key=lambda row: row.attempts):
        try:
            path = file_of(row.path)
        except SpoolUnavailable as error:
            outcome = StoreOutcome(row.sop_instance_uid, StoreOutcomeKind.RETRY, None, str(error))
            counts[outcome.kind] += 1
            _record(ledger, hold.id, settings, row.id, row.attempts, outcome)
            log.warning("report put off", sop_instance_uid=row.sop_instance_uid, reason=outcome.reason)
        else:
            here.append(row)
            items.append(OutgoingInstance(path, row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid))
    if not items:
        return SendSummary(retried=counts[StoreOutcomeKind.RETRY])
    # Outcomes first: asked for one more than there are, the archive ends its association in good order.
    for outcome, row in zip(_until(archive.store(items), lambda: stopping() or hold.lost()), here, strict=False):
        counts[outcome.kind] += 1
        _record(ledger, hold.id, settings, row.id, row.attempts, outcome)
        bus.publish(bus.ReportSent(row.kind, outcome.kind))
        on_sent(row, outcome)
        say = log.info if outcome.kind is StoreOutcomeKind.STORED else log.warning
        say(f"report {outcome.kind.value}", sop_instance_uid=outcome.sop_instance_uid, reason=outcome.reason)
    return SendSummary(counts[StoreOutcomeKind.STORED], counts[StoreOutcomeKind.RETRY], counts[StoreOutcomeKind.FAILED])


def _until(outcomes: Iterator[StoreOutcome], stopping: Callable[[], bool]) -> Iterator[StoreOutcome]:
    """What is under way is finished: its outcome is recorded before the next is begun, or not begun."""
    while not stopping():
        began, cpu = time.monotonic(), time.thread_time()
        if (outcome := next(outcomes, None)) is None:
            return
        publish(StageTiming(Stage.SEND, time.monotonic() - began, time.thread_time() - cpu))
        yield outcome


def _record(
    ledger: Ledger, owner: str, settings: ArchiveSettings, item_id: int, attempts: int, outcome: StoreOutcome
) -> None:
    status, reason = outcome.status, outcome.reason

    def transition(connection: Connection) -> None:
        now = time.time()
        if outcome.kind is StoreOutcomeKind.STORED and settings.commitment:
            outbox.stored_uncommitted(connection, item_id, status, reason, now, owner)
        elif outcome.kind is StoreOutcomeKind.STORED:
            outbox.stored(connection, item_id, status, reason, now, owner)
        elif outcome.kind is StoreOutcomeKind.FAILED:
            outbox.failed(connection, item_id, status, reason, now, owner)
        else:
            when = now + next_attempt(attempts, settings.retry_first_s, settings.retry_max_s)
            outbox.retry_at(connection, item_id, when, status, reason, owner)

    ledger.transact(transition)
