"""Sending, as threads: a report leaves as soon as it is due, and beside that what the archive has stored is asked about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Row

from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.outbox_sender import SendSummary, send_due
from daemon.archive.storage_commitment import StorageCommitment
from daemon.audit.trail import AuditTrail
from daemon.events.outcomes import StoreOutcome
from daemon.ledger import Ledger, outbox
from daemon.ledger.schema import OutboxState
from daemon.nodes.membership import Hold
from daemon.storage.spool import Spool

# The ledger is looked at this often even when nobody calls `wake`: an operator's retry is written there by another process.
LOOK_S = 60.0
# After a look that came to nothing although something was due: a full disk or a locked ledger passes.
AGAIN_S = 1.0

log = structlog.get_logger()


class _Loop:
    """A thread that calls `look` when woken and when a report in `state` is due; `look` says whether it came to anything."""

    def __init__(
        self, name: str, ledger: Ledger, hold: Callable[[], Hold], state: OutboxState, look: Callable[[], bool]
    ) -> None:
        self._ledger = ledger
        self._hold = hold
        self._state = state
        self._look = look
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before the look: what is said during it leads to another one
            try:
                wait_s = self._until_due(0 if self._look() else AGAIN_S)
            except Exception as error:  # the loop must not end
                log.error("trying again", thread=self.thread.name, error=type(error).__name__)
                wait_s = AGAIN_S
            if self._stopping.is_set():  # said after the clearing
                return
            self._wake.wait(wait_s)

    def _until_due(self, least_s: float) -> float:
        with self._ledger.read() as connection:
            due = outbox.next_attempt(connection, self._hold().id, self._state)
        if due is None:
            return LOOK_S
        overdue = due <= time.time()
        return least_s if overdue else min(due - time.time(), LOOK_S)


class SenderThreads:
    """One thread that sends, so one sender at a time on each node; while it sends, the reports gather that the next one takes
    together. Another asks for commitment, which waits for the archive's answer and must not keep a report waiting.

    `settings` is asked anew for each association, since they can be reloaded.
    """

    def __init__(
        self,
        ledger: Ledger,
        hold: Callable[[], Hold],
        archive: Archive,
        spool: Spool,
        settings: Callable[[], Settings],
        commitment: StorageCommitment,
        audit: AuditTrail,
    ) -> None:
        self._ledger = ledger
        self._hold = hold
        self._archive = archive
        self._spool = spool
        self._settings = settings
        self._commitment = commitment
        self._audit = audit
        self._sender = _Loop("sender", ledger, hold, OutboxState.QUEUED, self._send_due)
        self._asker = _Loop("commitment", ledger, hold, OutboxState.COMMITTING, self._ask_due)

    def start(self) -> None:
        self._sender.thread.start()
        self._asker.thread.start()

    def wake(self) -> None:
        """A report may have become due."""
        self._sender.wake()
        self._asker.wake()

    def _send_due(self) -> bool:
        sent = self._send(self._settings().archive, self._sender.is_stopping)
        if sent.stored:
            self._asker.wake()
        return sent != SendSummary()

    def _ask_due(self) -> bool:
        asked = self._commitment.ask_due(self._hold())
        if asked:
            self._sender.wake()  # what the archive does not commit is sent again
        return asked > 0

    def _send(self, archive: ArchiveSettings, stopping: Callable[[], bool]) -> SendSummary:
        told: list[tuple[Row, StoreOutcome]] = []
        try:
            with self._spool.reading() as file_of:
                return send_due(
                    self._ledger,
                    self._hold(),
                    self._archive,
                    archive,
                    file_of,
                    lambda row, outcome: told.append((row, outcome)),
                    stopping,
                )
        finally:
            self._audit.sent(told, self._settings())

    def stop(self) -> None:
        """Begin no further report and no further question; what is under way ends."""
        self._sender.stop()
        self._asker.stop()

    def finish(self, left: Callable[[], float]) -> bool:
        """After `stop`: the reports of the last jobs go out now rather than at the next start, where the archive is there and
        `left()` gives seconds for it.

        False where a report or question under way did not end in time; the archive has it or not, and is sent it again.
        """
        self._sender.thread.join(left())
        if self._sender.thread.is_alive():
            return False
        if left() > 0:
            archive = self._settings().archive
            limited = archive.model_copy(update={"timeout_s": min(archive.timeout_s, left())})
            self._archive.settings = limited
            self._send(limited, lambda: left() == 0)
        self._asker.thread.join(left())
        return not self._asker.thread.is_alive()
