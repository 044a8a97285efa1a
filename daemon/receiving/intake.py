"""Intake: makes a received instance durable, records it in the ledger and pairs it.

Pairing follows the references inside a lesion object: its job is ready when every instance that it names is
here, in whatever order they arrived. `Intake.accept` returns only when bytes and rows are on disk (invariant
1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from daemon.dicom.digest import is_sha256, sha256_of
from daemon.dicom.status import OUT_OF_RESOURCES
from daemon.errors import RefusedInstance, SpoolUnavailable
from daemon.events import bus
from daemon.events.outcomes import Arrival
from daemon.ledger import UNAVAILABLE, Ledger, instances, jobs, recording_a_file
from daemon.ledger.instances import StoredInstance
from daemon.receiving.spooling import SpooledInstance, spool_failure, spool_instance
from daemon.storage.deletion import delete_files
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool, SpoolFile

log = structlog.get_logger()


class Intake:
    """Accepts instances into spool and ledger. `on_ready` is called when a job may have become ready.

    `on_received` is told of each accepted instance with its Study Instance UID ("" if it has none).
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        bundle: str,
        on_ready: Callable[[], None],
        *,
        on_received: Callable[[ReceivedInstance, str, Arrival], None] = lambda *_: None,
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._bundle = bundle
        self._on_ready = on_ready
        self._on_received = on_received

    def accept(self, received: ReceivedInstance) -> None:
        """Make an instance durable and pair it. Our own reports are recognised and dropped (invariant 3).

        Raises:
            RefusedInstance: the data set cannot be understood, there is no room, the spool's bucket refuses
                it, or the ledger is full or locked.
            OSError: the spool cannot be written (disk full).
        """
        (error,) = self.record([spool_instance(received, self._spool)])
        if error is not None:
            raise error

    def record(self, spooled: Sequence[SpooledInstance]) -> list[Exception | None]:
        """Record instances that are in the spool already, together; return why each failed, or None.

        It runs in the process that has the ledger. The failures are:
            RefusedInstance: the ledger is full or locked, or the file was deleted meanwhile and the bucket
                refuses it.
            OSError: the file was deleted meanwhile, and the spool cannot be written.
        """
        recordings = [_Recording(self._spool, self._bundle, item, item.file) if item.file else None for item in spooled]
        transitions = [recording.transition for recording in recordings if recording]
        results = iter(self._ledger.transact_together(transitions) if transitions else ())
        errors: list[Exception | None] = []
        for item, recording in zip(spooled, recordings, strict=True):
            try:
                self._finish(recording, next(results)) if recording else self._drop_own_report(item)
            except Exception as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    def _drop_own_report(self, spooled: SpooledInstance) -> None:
        received = spooled.received
        _log_of(received).info("own report received, dropped")
        bus.publish(bus.InstanceAccepted(Arrival.DUPLICATE, received.path.stat().st_size))
        self._on_received(received, spooled.study_uid, Arrival.DUPLICATE)

    def _finish(self, recording: _Recording, result: tuple[Arrival, bool] | Exception) -> None:
        """Report the result of the transaction, committed or failed."""
        if isinstance(result, UNAVAILABLE):
            reason = f"the ledger cannot be written now ({_kind(result)}); send it again later"
            raise RefusedInstance(OUT_OF_RESOURCES, reason) from result
        if isinstance(result, SpoolUnavailable):
            raise spool_failure(result) from result
        if isinstance(result, Exception):
            raise result
        arrival, ready = result
        received = recording.spooled.received
        if recording.replaced:
            delete_files(self._ledger, self._spool, recording.replaced)
        bus.publish(bus.InstanceAccepted(arrival, recording.file.size))
        self._log_arrival(recording, arrival)
        self._on_received(received, recording.spooled.study_uid, arrival)
        if ready:
            self._on_ready()

    @staticmethod
    def _log_arrival(recording: _Recording, arrival: Arrival) -> None:
        bound = _log_of(recording.spooled.received)
        if recording.spooled.unusable:
            bound.warning("lesion object cannot be used", reason=recording.spooled.unusable)
        elif arrival is Arrival.CHANGED:
            bound.warning("same SOP Instance UID with other content, both kept, newer one used")
        else:
            bound.info("instance accepted", arrival=arrival.value, size=recording.file.size)


class _Recording:
    """Records an instance in a transaction. `replaced` are files of an older mammod that it replaces."""

    def __init__(self, spool: Spool, bundle: str, spooled: SpooledInstance, file: SpoolFile) -> None:
        self._spool = spool
        self._bundle = bundle
        self.spooled = spooled
        self.file = file
        self.replaced: list[str] = []
        self._sha256: str | None = None

    def transition(self, connection: Connection) -> tuple[Arrival, bool]:
        """Record and pair it; return what it was to the ledger, and whether a job may have become ready."""
        received, file = self.spooled.received, self.file
        recording_a_file(connection)
        self.replaced.clear()
        instance = StoredInstance(
            sop_instance_uid=received.sop_instance_uid,
            sop_class_uid=received.sop_class_uid,
            study_uid=self.spooled.study_uid,
            series_uid=self.spooled.series_uid,
            transfer_syntax_uid=received.transfer_syntax_uid,
            digest=file.digest,
            size=file.size,
            path=file.path,
            calling_ae=received.calling_ae,
            # Taken inside the transaction: while it waited for the ledger, the clock may have been set back.
            received_at=time.time(),
        )
        arrival, instance_id = instances.record(connection, instance, self._is_same)
        if not self._spool.has(file.path):  # retention deleted the old row and file just now
            self._spool.add_instance(received.path, received.sop_instance_uid, file.digest)
        ready = arrival is not Arrival.DUPLICATE and self._pair(connection, instance, instance_id, arrival)
        return arrival, ready

    def _is_same(self, digest: str, path: str) -> bool:
        if not is_sha256(digest):
            return False
        if self._sha256 is None:
            self._sha256 = sha256_of(self.spooled.received.path)
        if digest != self._sha256:
            return False
        self.replaced.append(path)
        return True

    def _pair(self, connection: Connection, instance: StoredInstance, instance_id: int, arrival: Arrival) -> bool:
        """Pair the instance with jobs; return whether a job may have become ready."""
        now = instance.received_at
        uid = instance.sop_instance_uid
        if arrival is Arrival.CHANGED:
            jobs.supersede(connection, uid, keep_instance=instance_id, now=now)
            jobs.input_changed(connection, uid, now)
        waiting = jobs.needing(connection, uid)
        ready = bool(waiting) and jobs.promote(connection, waiting, now) > 0
        references = self.spooled.references
        if references is None and self.spooled.unusable is None:
            return ready or arrival is Arrival.CHANGED
        needed = tuple(dict.fromkeys((*references.image_uids, *references.segmentation_uids))) if references else ()
        # A lesion object that names nothing is ready at once: the worker quarantines it, and reports that if
        # configured.
        jobs.create(connection, instance_id, uid, needed, self._bundle, now)
        return True


def _log_of(received: ReceivedInstance) -> structlog.stdlib.BoundLogger:
    bound: structlog.stdlib.BoundLogger = log.bind(
        association=received.association_id, sop_instance_uid=received.sop_instance_uid
    )
    return bound


def _kind(error: SQLAlchemyError) -> str:
    """Return the database's own message; SQLAlchemy's would quote values of the statement."""
    message = str(getattr(error, "orig", None) or "").splitlines()
    return message[0] if message else type(error).__name__
