"""Intake: an instance that was received becomes durable, is recorded and paired.

Pairing is by the references inside the lesion object: its job is ready when every instance it names is here, in whatever
order they came. `Intake.accept` returns only when bytes and rows are on disk (invariant 1).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from daemon import events
from daemon.arrival import Arrival
from daemon.digest import is_sha256, sha256_of
from daemon.errors import RefusedInstance, SpoolUnavailable
from daemon.incoming import Incoming
from daemon.ledger import UNAVAILABLE, Ledger, instances, jobs, recording_a_file
from daemon.ledger.instances import StoredInstance
from daemon.placing import InSpool, cannot_place, place
from daemon.retention import remove_files
from daemon.spool import OUT_OF_RESOURCES, Spool

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
        on_received: Callable[[Incoming, str, Arrival], None] = lambda *_: None,
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._bundle = bundle
        self._on_ready = on_ready
        self._on_received = on_received

    def accept(self, incoming: Incoming) -> None:
        """Make an instance durable and pair it. Our own reports are recognised and dropped (invariant 3).

        Raises:
            RefusedInstance: the data set cannot be understood, there is no room, the spool's bucket does not take it, or the
                ledger is full or locked.
            OSError: the spool cannot be written (disk full).
        """
        self.record(place(incoming, self._spool))

    def record(self, placed: InSpool) -> None:
        """The part that needs the ledger: of an instance that lies in the spool already, in the process that has the ledger.

        Raises:
            RefusedInstance: the ledger is full or locked, or the file was removed meanwhile and the bucket does not take it.
            OSError: the same, and the spool cannot be written.
        """
        incoming = placed.incoming
        bound = log.bind(association=incoming.association_id, sop_instance_uid=incoming.sop_instance_uid)
        if placed.file is None:
            bound.info("own report came back, dropped")
            events.tell(events.InstanceAccepted(Arrival.DUPLICATE, incoming.path.stat().st_size))
            self._on_received(incoming, placed.study_uid, Arrival.DUPLICATE)
            return
        file = placed.file
        instance = StoredInstance(
            sop_instance_uid=incoming.sop_instance_uid,
            sop_class_uid=incoming.sop_class_uid,
            study_uid=placed.study_uid,
            series_uid=placed.series_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            digest=file.digest,
            size=file.size,
            path=file.path,
            calling_ae=incoming.calling_ae,
            received_at=time.time(),
        )

        sha256 = functools.cache(lambda: sha256_of(incoming.path))
        left: list[str] = []  # files of older versions, in whose place this one is now

        def is_same(digest: str, path: str) -> bool:
            if not is_sha256(digest) or digest != sha256():
                return False
            left.append(path)
            return True

        def transition(connection: Connection) -> tuple[Arrival, bool]:
            recording_a_file(connection)
            left.clear()
            # Again: a time that was taken before waiting for the ledger may be of a clock that was set back meanwhile.
            recorded = replace(instance, received_at=time.time())
            arrival, instance_id = instances.record(connection, recorded, is_same)
            if not self._spool.has(file.path):  # retention removed the old row and file just now
                self._spool.place(incoming.path, incoming.sop_instance_uid, file.digest)
            ready = arrival is not Arrival.DUPLICATE and self._pair(connection, recorded, instance_id, placed, arrival)
            return arrival, ready

        try:
            arrival, ready = self._ledger.change_together(transition)
        except UNAVAILABLE as error:
            raise RefusedInstance(
                OUT_OF_RESOURCES, f"the ledger cannot be written now ({_kind(error)}); send it again later"
            ) from error
        except SpoolUnavailable as error:
            raise cannot_place(error) from error
        if left:
            remove_files(self._ledger, self._spool, left)
        events.tell(events.InstanceAccepted(arrival, instance.size))
        self._say(bound, instance, arrival, placed.unusable)
        self._on_received(incoming, placed.study_uid, arrival)
        if ready:
            self._on_ready()

    def _pair(
        self,
        connection: Connection,
        instance: StoredInstance,
        instance_id: int,
        placed: InSpool,
        arrival: Arrival,
    ) -> bool:
        """Whether a job may have become ready by it."""
        now = instance.received_at
        uid = instance.sop_instance_uid
        if arrival is Arrival.CHANGED:
            jobs.supersede(connection, uid, keep_instance=instance_id, now=now)
            jobs.input_changed(connection, uid, now)
        waiting = jobs.needing(connection, uid)
        ready = bool(waiting) and jobs.promote(connection, waiting, now) > 0
        references = placed.references
        if references is None and placed.unusable is None:
            return ready or arrival is Arrival.CHANGED
        needed = (*references.image_uids, *references.segmentation_uids) if references else ()
        # One that names nothing is ready at once: the worker quarantines it, and reports that where it shall.
        jobs.create(connection, instance_id, uid, needed, self._bundle, now)
        return True

    @staticmethod
    def _say(
        bound: structlog.stdlib.BoundLogger, instance: StoredInstance, arrival: Arrival, unusable: str | None
    ) -> None:
        if unusable:
            bound.warning("lesion object cannot be used", reason=unusable)
        elif arrival is Arrival.CHANGED:
            bound.warning("same SOP Instance UID with other content: both kept, the newer one is used")
        else:
            bound.info("instance accepted", arrival=arrival.value, size=instance.size)


def _kind(error: SQLAlchemyError) -> str:
    """What the database says, which quotes no value; SQLAlchemy's own message would quote the statement's."""
    said = str(getattr(error, "orig", None) or "").splitlines()
    return said[0] if said else type(error).__name__
