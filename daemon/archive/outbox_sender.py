"""Sender: send the reports that are due from the outbox to the archive, and record each outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import Connection

from config.settings import Archive as ArchiveSettings
from daemon.archive.store_status import OutgoingInstance
from daemon.errors import SpoolUnavailable
from daemon.events import bus
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming, publish
from daemon.ledger import Ledger, outbox
from daemon.ledger.records import OutboxItem
from daemon.ledger.schema import OutboxState
from daemon.nodes.membership import Hold
from daemon.system.backoff import Backoff

MAX_REPORTS = 100  # claimed at once

log = structlog.get_logger()


class Store(Protocol):
    """What the sender needs of `daemon.archive.client.Archive`: one outcome per item, in order."""

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Store `items`; yield the outcome of each."""
        ...


@dataclass(frozen=True)
class SendSummary:
    """How many reports one call of `send_due` stored, postponed, and saw refused for good."""

    stored: int = 0
    retried: int = 0
    failed: int = 0


def retry_backoff(settings: ArchiveSettings) -> Backoff:
    """Return the pauses after which the archive is tried again."""
    return Backoff(settings.retry_first_s, settings.retry_max_s)


def send_due(
    ledger: Ledger,
    hold: Hold,
    archive: Store,
    settings: ArchiveSettings,
    file_of: Callable[[str], Path],
    *,
    on_sent: Callable[[OutboxItem, StoreOutcome], None] = lambda *_: None,
    stopping: Callable[[], bool] = lambda: False,
) -> SendSummary:
    """Send reports that are due and that no other node has claimed, at most `MAX_REPORTS`.

    Each outcome is in the ledger before the next report is sent. Reports with the fewest attempts are sent
    first, so that one that breaks associations never delays the others.

    Args:
        ledger: holds the outbox.
        hold: the node's id; once it is lost, no further report is sent.
        archive: stores the reports.
        settings: of the archive.
        file_of: returns the file of an outbox path, as `Spool.reading` does; or the report is postponed.
        on_sent: called with each report and its outcome.
        stopping: returns whether no further report is to be sent.
    """
    with ledger.read() as connection:
        due = outbox.next_attempt(connection, hold.id, OutboxState.QUEUED)
    if due is None or due > time.time():
        return SendSummary()
    rows = ledger.transact(lambda connection: outbox.claim(connection, hold.id, time.time(), MAX_REPORTS))
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
            log.warning("report postponed", sop_instance_uid=row.sop_instance_uid, reason=outcome.reason)
        else:
            here.append(row)
            items.append(OutgoingInstance(path, row.sop_class_uid, row.sop_instance_uid, row.transfer_syntax_uid))
    if not items:
        return SendSummary(retried=counts[StoreOutcomeKind.RETRY])
    # Outcomes first: asked for one more than there are, the client releases its association.
    for outcome, row in zip(_until(archive.store(items), lambda: stopping() or hold.lost()), here, strict=False):
        counts[outcome.kind] += 1
        _record(ledger, hold.id, settings, row.id, row.attempts, outcome)
        bus.publish(bus.ReportSent(row.kind, outcome.kind))
        on_sent(row, outcome)
        say = log.info if outcome.kind is StoreOutcomeKind.STORED else log.warning
        say(f"report {outcome.kind.value}", sop_instance_uid=outcome.sop_instance_uid, reason=outcome.reason)
    return SendSummary(counts[StoreOutcomeKind.STORED], counts[StoreOutcomeKind.RETRY], counts[StoreOutcomeKind.FAILED])


def _until(outcomes: Iterator[StoreOutcome], stopping: Callable[[], bool]) -> Iterator[StoreOutcome]:
    """Yield outcomes until `stopping`; the report under way is finished, and its outcome recorded, before."""
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
            when = now + retry_backoff(settings).jittered_pause_s(attempts)
            outbox.retry_at(connection, item_id, when, status, reason, owner)

    ledger.transact(transition)
