"""Intake: an instance that was received becomes durable, is recorded and paired.

Pairing is by the references inside the lesion object: its job is ready when every instance it names is here, in whatever
order they came. `Intake.accept` returns only when bytes and rows are on disk (invariant 1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from daemon.dicom.digest import is_sha256, sha256_of
from daemon.errors import RefusedInstance, SpoolUnavailable
from daemon.events import bus
from daemon.events.outcomes import Arrival
from daemon.ledger import UNAVAILABLE, Ledger, instances, jobs, recording_a_file
from daemon.ledger.instances import StoredInstance
from daemon.maintenance.retention import delete_files
from daemon.receiving.spooling import SpooledInstance, spool_failure, spool_instance
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import OUT_OF_RESOURCES, Placed, Spool

log = structlog.get_logger()


class Intake:
    """Accepts instances into spool and ledger. `on_ready` is called when a job may have become ready.

    `on_received` is told of each accepted instance with its Study Instance UID ("" where it has none).
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        bundle: str,
        on_ready: Callable[[], None],
        on_received: Callable[[ReceivedInstance, str, Arrival], None] = lambda *_: None,
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._bundle = bundle
        self._on_ready = on_ready
        self._on_received = on_received

    def accept(self, incoming: ReceivedInstance) -> None:
        """Make an instance durable and pair it. Our own reports are recognised and dropped (invariant 3).

        Raises:
            RefusedInstance: the data set cannot be understood, there is no room, the spool's bucket does not take it, or the
                ledger is full or locked.
            OSError: the spool cannot be written (disk full).
        """
        (error,) = self.record([spool_instance(incoming, self._spool)])
        if error is not None:
            raise error

    def record(self, several: Sequence[SpooledInstance]) -> list[Exception | None]:
        """The part that needs the ledger, for instances that lie in the spool already, in the process that has the ledger.

        What each failed with:
            RefusedInstance: the ledger is full or locked, or the file was removed meanwhile and the bucket does not take it.
            OSError: the same, and the spool cannot be written.
        """
        recordings = [
            _Recording(self._spool, self._bundle, placed, placed.file) if placed.file else None for placed in several
        ]
        transitions = [recording.transition for recording in recordings if recording]
        results = iter(self._ledger.transact_together(transitions) if transitions else ())
        errors: list[Exception | None] = []
        for placed, recording in zip(several, recordings, strict=True):
            try:
                self._finish(recording, next(results)) if recording else self._drop_own(placed)
            except Exception as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    def _drop_own(self, placed: SpooledInstance) -> None:
        incoming = placed.incoming
        _log_of(incoming).info("own report came back, dropped")
        bus.publish(bus.InstanceAccepted(Arrival.DUPLICATE, incoming.path.stat().st_size))
        self._on_received(incoming, placed.study_uid, Arrival.DUPLICATE)

    def _finish(self, recording: _Recording, result: tuple[Arrival, bool] | Exception) -> None:
        """What follows once it is committed, or failed."""
        if isinstance(result, UNAVAILABLE):
            reason = f"the ledger cannot be written now ({_kind(result)}); send it again later"
            raise RefusedInstance(OUT_OF_RESOURCES, reason) from result
        if isinstance(result, SpoolUnavailable):
            raise spool_failure(result) from result
        if isinstance(result, Exception):
            raise result
        arrival, ready = result
        incoming = recording.placed.incoming
        if recording.left:
            delete_files(self._ledger, self._spool, recording.left)
        bus.publish(bus.InstanceAccepted(arrival, recording.file.size))
        self._say(recording, arrival)
        self._on_received(incoming, recording.placed.study_uid, arrival)
        if ready:
            self._on_ready()

    @staticmethod
    def _say(recording: _Recording, arrival: Arrival) -> None:
        bound = _log_of(recording.placed.incoming)
        if recording.placed.unusable:
            bound.warning("lesion object cannot be used", reason=recording.placed.unusable)
        elif arrival is Arrival.CHANGED:
            bound.warning("same SOP Instance UID with other content: both kept, the newer one is used")
        else:
            bound.info("instance accepted", arrival=arrival.value, size=recording.file.size)


class _Recording:
    """One instance on its way into the ledger. `left`: files of older versions, in whose place this one is now."""

    def __init__(self, spool: Spool, bundle: str, placed: SpooledInstance, file: Placed) -> None:
        self._spool = spool
        self._bundle = bundle
        self.placed = placed
        self.file = file
        self.left: list[str] = []
        self._sha256: str | None = None

    def transition(self, connection: Connection) -> tuple[Arrival, bool]:
        """What it was to the ledger, and whether a job may have become ready by it."""
        incoming, file = self.placed.incoming, self.file
        recording_a_file(connection)
        self.left.clear()
        instance = StoredInstance(
            sop_instance_uid=incoming.sop_instance_uid,
            sop_class_uid=incoming.sop_class_uid,
            study_uid=self.placed.study_uid,
            series_uid=self.placed.series_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            digest=file.digest,
            size=file.size,
            path=file.path,
            calling_ae=incoming.calling_ae,
            # Not before: a time that was taken before waiting for the ledger may be of a clock that was set back meanwhile.
            received_at=time.time(),
        )
        arrival, instance_id = instances.record(connection, instance, self._is_same)
        if not self._spool.has(file.path):  # retention removed the old row and file just now
            self._spool.place(incoming.path, incoming.sop_instance_uid, file.digest)
        ready = arrival is not Arrival.DUPLICATE and self._pair(connection, instance, instance_id, arrival)
        return arrival, ready

    def _is_same(self, digest: str, path: str) -> bool:
        if not is_sha256(digest):
            return False
        if self._sha256 is None:
            self._sha256 = sha256_of(self.placed.incoming.path)
        if digest != self._sha256:
            return False
        self.left.append(path)
        return True

    def _pair(self, connection: Connection, instance: StoredInstance, instance_id: int, arrival: Arrival) -> bool:
        """Whether a job may have become ready by it."""
        now = instance.received_at
        uid = instance.sop_instance_uid
        if arrival is Arrival.CHANGED:
            jobs.supersede(connection, uid, keep_instance=instance_id, now=now)
            jobs.input_changed(connection, uid, now)
        waiting = jobs.needing(connection, uid)
        ready = bool(waiting) and jobs.promote(connection, waiting, now) > 0
        references = self.placed.references
        if references is None and self.placed.unusable is None:
            return ready or arrival is Arrival.CHANGED
        needed = tuple(dict.fromkeys((*references.image_uids, *references.segmentation_uids))) if references else ()
        # One that names nothing is ready at once: the worker quarantines it, and reports that where it shall.
        jobs.create(connection, instance_id, uid, needed, self._bundle, now)
        return True


def _log_of(incoming: ReceivedInstance) -> structlog.stdlib.BoundLogger:
    bound: structlog.stdlib.BoundLogger = log.bind(
        association=incoming.association_id, sop_instance_uid=incoming.sop_instance_uid
    )
    return bound


def _kind(error: SQLAlchemyError) -> str:
    """What the database says, which quotes no value; SQLAlchemy's own message would quote the statement's."""
    said = str(getattr(error, "orig", None) or "").splitlines()
    return said[0] if said else type(error).__name__
