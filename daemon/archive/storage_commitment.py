"""Storage commitment (PS3.4 annex J): the archive is asked to promise that it keeps what it stored.

We are the SCU. The promise (N-EVENT-REPORT) comes on the association of the request or on a new one to our
listener, now or much later. Requests stand in the ledger, so that an answer finds its reports after a restart
as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import structlog
from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive, ContextsRefused
from daemon.archive.outbox_sender import retry_backoff
from daemon.dicom.status import INVALID_ARGUMENT_VALUE, NOT_AUTHORIZED, PROCESSING_FAILURE, SUCCESS
from daemon.errors import ArchiveError, CommitmentRefused
from daemon.ledger import Ledger, outbox
from daemon.ledger.records import OutboxItem
from daemon.ledger.schema import OutboxState
from daemon.nodes.membership import Hold
from daemon.system.backoff import Backoff

MAX_REPORTS = 100  # in one request
# The association of the request stays open this long for an archive that answers on it.
LINGER_S = 5.0
MAX_WAIT_TIMEOUTS = 16  # the longest wait for an answer, in archive.commitment_timeout_s

log = structlog.get_logger()


def max_wait_s(settings: ArchiveSettings) -> float:
    """Return the longest time in seconds that a stored report waits until the archive is asked about it."""
    return max(settings.commitment_timeout_s * MAX_WAIT_TIMEOUTS, settings.retry_max_s)


class StorageCommitment:
    """Asks for commitment of reports that are stored only, and takes the answers. Thread-safe."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive
        self._awaited: dict[str, threading.Event] = {}

    def ask_due(self, hold: Hold) -> int:
        """Ask about reports that are due and that no other node has claimed, in one request; return how many.

        Reports that were asked about too often fail, visibly.
        """
        settings = self._archive.settings
        with self._ledger.read() as connection:
            due = outbox.next_attempt(connection, hold.id, OutboxState.COMMITTING)
        if due is None or due > time.time():
            return 0
        rows = self._ledger.transact(
            lambda connection: outbox.claim_uncommitted(connection, hold.id, time.time(), MAX_REPORTS)
        )
        if not rows:
            return 0
        if not settings.commitment:
            self._ledger.transact(lambda connection: _accept_uncommitted(connection, rows))
            return 0
        for row in rows:
            if row.commit_attempts >= settings.commitment_attempts:
                self._give_up(row, hold.id)
        rows = [row for row in rows if row.commit_attempts < settings.commitment_attempts]
        if rows:
            self._ask(rows, hold.id)
        return len(rows)

    def _ask(self, rows: Sequence[OutboxItem], owner: str) -> None:
        settings = self._archive.settings
        transaction = str(generate_uid(prefix=None))
        ids = [row.id for row in rows]
        wait_s, now = settings.commitment_timeout_s, time.time()
        waits = Backoff(wait_s, wait_s * MAX_WAIT_TIMEOUTS)
        again = {row.id: now + waits.jittered_pause_s(row.commit_attempts) for row in rows}
        # Before the request: the answer may be faster than its response.
        self._ledger.transact(lambda connection: outbox.asked(connection, owner, transaction, again))
        answered = self._awaited.setdefault(transaction, threading.Event())
        reason, failure, counts = "the archive was asked to commit it and has not answered yet", None, True
        try:
            wanted = [(row.sop_class_uid, row.sop_instance_uid) for row in rows]
            self._archive.request_commitment(transaction, wanted, self.take, answered=answered, linger_s=LINGER_S)
        except ArchiveError as error:
            # A refusal may pass: it counts as an attempt, and the archive is asked again as late as after
            # silence.
            reason = failure = str(error)
            counts = isinstance(error, CommitmentRefused | ContextsRefused)
        finally:
            del self._awaited[transaction]
        if counts:
            self._ledger.transact(lambda connection: outbox.ask_ended(connection, owner, ids, reason))
        else:
            retry, now = retry_backoff(settings), time.time()
            later = {row.id: now + retry.jittered_pause_s(row.attempts) for row in rows}
            self._ledger.transact(lambda connection: outbox.not_asked(connection, owner, later, reason))
        log.info(
            "asked for storage commitment", transaction_uid=transaction, reports=len(rows), answered=answered.is_set()
        )
        if failure is not None:
            log.warning("storage commitment not asked for", reason=failure)

    def _give_up(self, row: OutboxItem, owner: str) -> None:
        reason = (
            f"stored, but not committed: the archive was asked {row.commit_attempts} times ({row.reason}); "
            "look there, then `mammod jobs retry`, or set [archive] commitment = false"
        )
        self._ledger.transact(
            lambda connection: outbox.failed(connection, row.id, row.status, reason, time.time(), owner)
        )
        log.warning("report not committed", sop_instance_uid=row.sop_instance_uid, reason=reason)

    def take_from(self, calling_ae: str, information: Dataset) -> int:
        """Take an answer on an association to our listener; only the archive of the settings may give it."""
        if calling_ae != self._archive.settings.ae_title:
            log.warning("storage commitment result refused: not from archive.ae_title", calling_ae=calling_ae)
            return NOT_AUTHORIZED
        return self.take(information)

    def take(self, information: Dataset) -> int:
        """Take an N-EVENT-REPORT's event information (PS3.4 table J.3-2); return the status to answer."""
        try:
            transaction = str(information.get("TransactionUID") or "")
            committed = [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or ()]
            refused = {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or PROCESSING_FAILURE)
                for item in information.get("FailedSOPSequence") or ()
            }
        except (AttributeError, TypeError, ValueError):
            log.warning("storage commitment result cannot be read")
            return INVALID_ARGUMENT_VALUE
        try:
            known = self._ledger.transact(lambda connection: self._record(connection, transaction, committed, refused))
        except SQLAlchemyError as error:
            log.error("storage commitment result cannot be recorded", error=type(error).__name__)
            return PROCESSING_FAILURE
        if not known:
            log.warning("storage commitment result for a transaction that is not ours")
            return INVALID_ARGUMENT_VALUE
        log.info("storage commitment", transaction_uid=transaction, committed=len(committed), refused=len(refused))
        if waiting := self._awaited.get(transaction):
            waiting.set()
        return SUCCESS

    def _record(
        self, connection: Connection, transaction: str, committed: Sequence[str], refused: dict[str, int]
    ) -> bool:
        settings = self._archive.settings
        rows = {row.sop_instance_uid: row for row in outbox.of_transaction(connection, transaction)}
        now = time.time()
        for uid in committed:
            if uid in rows:
                outbox.committed(connection, rows[uid].id, None, now)
        for uid, status in refused.items():
            row = rows.get(uid)
            if row is None:
                continue
            reason = f"the archive does not commit it (0x{status:04X})"
            if row.commit_attempts + 1 >= settings.commitment_attempts:
                reason += f", sent and asked for {row.commit_attempts + 1} times"
                outbox.commitment_refused(connection, row.id, None, status, reason, now)
            else:
                again = now + retry_backoff(settings).jittered_pause_s(row.commit_attempts)
                outbox.commitment_refused(connection, row.id, again, status, f"{reason}; it is sent again", now)
        return bool(rows)


def _accept_uncommitted(connection: Connection, rows: Sequence[OutboxItem]) -> None:
    for row in rows:
        outbox.committed(connection, row.id, "stored; [archive] commitment was turned off", time.time())
