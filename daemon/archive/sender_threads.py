"""Threads that send reports as soon as they are due, and ask the archive to commit what it has stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.outbox_sender import SendSummary, send_due
from daemon.archive.storage_commitment import StorageCommitment
from daemon.audit.trail import AuditTrail
from daemon.events.outcomes import StoreOutcome
from daemon.ledger import Ledger, outbox
from daemon.ledger.records import OutboxItem
from daemon.ledger.schema import OutboxState
from daemon.nodes.membership import Hold
from daemon.storage.spool import Spool

# The ledger is checked this often even if nobody calls `wake`: an operator's retry is written there by
# another process.
MAX_WAIT_S = 60.0
# After a check without effect although something was due: a full disk or a locked ledger passes.
RETRY_S = 1.0

log = structlog.get_logger()


class _Loop:
    """A thread that calls `look` when woken and when a report in `state` is due.

    `look` returns whether it had effect.
    """

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
            self._wake.clear()  # before the call: a wake during it leads to another one
            try:
                wait_s = self._until_due(0 if self._look() else RETRY_S)
            except Exception as error:  # the loop must not end
                log.error("sender thread failed, trying again", thread=self.thread.name, error=type(error).__name__)
                wait_s = RETRY_S
            if self._stopping.is_set():  # it may have been set after `clear`
                return
            self._wake.wait(wait_s)

    def _until_due(self, least_s: float) -> float:
        with self._ledger.read() as connection:
            due = outbox.next_attempt(connection, self._hold().id, self._state)
        if due is None:
            return MAX_WAIT_S
        overdue = due <= time.time()
        return least_s if overdue else min(due - time.time(), MAX_WAIT_S)


class SenderThreads:
    """Two threads: one sends reports, the other asks for commitment.

    One thread sends on each node; reports that become due meanwhile are sent together on the next
    association. Asking for commitment waits for the archive's answer, and must not delay a report. `settings`
    is called for each association, since they can be reloaded.
    """

    def __init__(
        self,
        *,
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
        """Start both threads."""
        self._sender.thread.start()
        self._asker.thread.start()

    def wake(self) -> None:
        """Check at once whether a report is due."""
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
        outcomes: list[tuple[OutboxItem, StoreOutcome]] = []
        try:
            with self._spool.reading() as file_of:
                return send_due(
                    self._ledger,
                    self._hold(),
                    self._archive,
                    archive,
                    file_of,
                    on_sent=lambda item, outcome: outcomes.append((item, outcome)),
                    stopping=stopping,
                )
        finally:
            self._audit.sent(outcomes, self._settings())

    def stop(self) -> None:
        """Begin no further report and no further request; those under way end."""
        self._sender.stop()
        self._asker.stop()

    def finish(self, left: Callable[[], float]) -> bool:
        """Send the reports of the last jobs now rather than at the next start; call it after `stop`.

        They are sent if the archive can be reached within the `left()` seconds. Returns False if a report or
        request under way did not end in time; such a report is sent again at the next start.
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
