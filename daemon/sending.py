"""Sending, as a thread: a report leaves as soon as it is due, and what the archive has stored is asked about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Row

from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive import Archive
from daemon.audit import Audit
from daemon.commitment import Commitment
from daemon.ledger import Ledger, outbox
from daemon.node import Hold
from daemon.outgoing import StoreOutcome
from daemon.sender import SendSummary, send_due
from daemon.spool import Spool

# The ledger is looked at this often even when nobody calls `wake`: an operator's retry is written there by another process.
LOOK_S = 60.0
# After a look that came to nothing although something was due: a full disk or a locked ledger passes.
AGAIN_S = 1.0

log = structlog.get_logger()


class Sending:
    """One thread, so one sender at a time on each node; while it sends, the reports gather that the next one takes together.

    `settings` is asked anew for each association, since they can be reloaded.
    """

    def __init__(
        self,
        ledger: Ledger,
        hold: Callable[[], Hold],
        archive: Archive,
        spool: Spool,
        settings: Callable[[], Settings],
        commitment: Commitment,
        audit: Audit,
    ) -> None:
        self._ledger = ledger
        self._hold = hold
        self._archive = archive
        self._spool = spool
        self._settings = settings
        self._commitment = commitment
        self._audit = audit
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """A report may have become due."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before the look: what is said during it leads to another one
            try:
                did = self._send(self._settings().archive, self._stopping.is_set) != SendSummary()
                did |= not self._stopping.is_set() and self._commitment.ask_due(self._hold()) > 0
                wait_s = self._until_due(0 if did else AGAIN_S)
            except Exception as error:  # the loop must not end
                log.error("reports cannot be sent, trying again", error=type(error).__name__)
                wait_s = AGAIN_S
            self._wake.wait(wait_s)

    def _until_due(self, least_s: float) -> float:
        with self._ledger.read() as connection:
            due = outbox.next_attempt(connection, self._hold().id)
        if due is None:
            return LOOK_S
        overdue = due <= time.time()
        return least_s if overdue else min(due - time.time(), LOOK_S)

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
        """Begin no further report; the one under way ends."""
        self._stopping.set()
        self._wake.set()

    def finish(self, left: Callable[[], float]) -> bool:
        """After `stop`: the reports of the last jobs go out now rather than at the next start, where the archive is there and
        `left()` gives seconds for it.

        False where a report under way did not end in time; the archive has it or not, and is sent it again.
        """
        self._thread.join(left())
        if self._thread.is_alive():
            return False
        if left() > 0:
            archive = self._settings().archive
            limited = archive.model_copy(update={"timeout_s": min(archive.timeout_s, left())})
            self._archive.settings = limited
            self._send(limited, lambda: left() == 0)
        return True
