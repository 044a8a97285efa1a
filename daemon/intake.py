"""Intake: an instance that the listener (or a retrieval) received becomes durable, is recorded and paired.

Pairing is by the references inside the lesion object: its job is ready when every instance it names is here, in whatever
order they came. `Intake.accept` returns only when bytes and rows are on disk (invariant 1).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydicom import dcmread
from pydicom.dataset import FileDataset
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from daemon import events
from daemon.data_set import CANNOT_UNDERSTAND
from daemon.errors import LesionError, RefusedInstance, SpoolUnavailable
from daemon.incoming import Incoming
from daemon.ledger import UNAVAILABLE, Ledger, instances, jobs, recording_a_file
from daemon.ledger.instances import Arrival, StoredInstance
from daemon.lesions import References, lesion_references, may_be_lesion_object
from daemon.reports.identity import OWN_CLASSES, is_own_report
from daemon.spool import OUT_OF_RESOURCES, Spool
from daemon.uids import harmless_uid

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
        self._large = threading.Lock()

    def accept(self, incoming: Incoming) -> None:
        """Make an instance durable and pair it. Our own reports are recognised and dropped (invariant 3).

        Raises:
            RefusedInstance: the data set cannot be understood, there is no room, the spool's bucket does not take it, or the
                ledger is full or locked.
            OSError: the spool cannot be written (disk full).
        """
        try:
            self._accept(incoming)
        except SpoolUnavailable as error:
            raise RefusedInstance(OUT_OF_RESOURCES, f"{error}; the instance may be sent again") from error

    def _accept(self, incoming: Incoming) -> None:
        self._spool.check_room()
        with self._large if incoming.is_large else contextlib.nullcontext():
            read = _seen(incoming) or _read(incoming.path)
        bound = log.bind(association=incoming.association_id, sop_instance_uid=incoming.sop_instance_uid)
        if read.is_own_report:
            bound.info("own report came back, dropped")
            events.tell(events.InstanceAccepted(Arrival.DUPLICATE, incoming.path.stat().st_size))
            self._on_received(incoming, read.study_uid, Arrival.DUPLICATE)
            return
        placed = self._spool.place(incoming.path, incoming.sop_instance_uid, incoming.digest)
        instance = StoredInstance(
            sop_instance_uid=incoming.sop_instance_uid,
            sop_class_uid=incoming.sop_class_uid,
            study_uid=read.study_uid,
            series_uid=read.series_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            digest=placed.digest,
            size=placed.size,
            path=placed.path,
            calling_ae=incoming.calling_ae,
            received_at=time.time(),
        )

        def transition(connection: Connection) -> tuple[Arrival, bool]:
            recording_a_file(connection)
            # Again: a time that was taken before waiting for the ledger may be of a clock that was set back meanwhile.
            recorded = replace(instance, received_at=time.time())
            arrival, instance_id = instances.record(connection, recorded)
            if not self._spool.has(placed.path):  # retention removed the old row and file just now
                self._spool.place(incoming.path, incoming.sop_instance_uid, placed.digest)
            ready = arrival is not Arrival.DUPLICATE and self._pair(
                connection, recorded, instance_id, read.references, read.unusable, arrival
            )
            return arrival, ready

        try:
            arrival, ready = self._ledger.change_together(transition)
        except UNAVAILABLE as error:
            raise RefusedInstance(
                OUT_OF_RESOURCES, f"the ledger cannot be written now ({_kind(error)}); send it again later"
            ) from error
        events.tell(events.InstanceAccepted(arrival, instance.size))
        self._say(bound, instance, arrival, read.unusable)
        self._on_received(incoming, read.study_uid, arrival)
        if ready:
            self._on_ready()

    def _pair(
        self,
        connection: Connection,
        instance: StoredInstance,
        instance_id: int,
        references: References | None,
        unusable: str | None,
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
        if references is None and unusable is None:
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


@dataclass(frozen=True)
class _Read:
    """What intake wants to know of a data set: both UIDs are empty where they are none."""

    is_own_report: bool
    study_uid: str
    series_uid: str
    references: References | None
    unusable: str | None


def _seen(incoming: Incoming) -> _Read | None:
    """What needs no second look: an instance that is neither lesion object nor report. None where one has to look.

    Raises:
        RefusedInstance: status C000, study or series is no UID.
    """
    may_be_either = may_be_lesion_object(incoming.sop_class_uid) or incoming.sop_class_uid in OWN_CLASSES
    if may_be_either or incoming.study_uid is None or incoming.series_uid is None:
        return None
    study, series = incoming.study_uid, incoming.series_uid
    return _Read(False, _uid(study, "StudyInstanceUID"), _uid(series, "SeriesInstanceUID"), None, None)


def _read(path: Path) -> _Read:
    """
    Raises:
        RefusedInstance: status C000 when pydicom cannot read it.
    """
    try:
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True)
        own = is_own_report(header)
        study = _uid(header.get("StudyInstanceUID"), "StudyInstanceUID")
        series = _uid(header.get("SeriesInstanceUID"), "SeriesInstanceUID")
    except RefusedInstance:
        raise
    except Exception as error:  # pydicom raises many kinds over broken input
        raise RefusedInstance(
            CANNOT_UNDERSTAND, f"the data set cannot be read as DICOM ({type(error).__name__}); send it whole and valid"
        ) from error
    references, unusable = (None, None) if own else _references(header)
    return _Read(own, study, series, references, unusable)


def _uid(value: object, keyword: str) -> str:
    """A UID that is safe to repeat in the ledger, in queries and in the audit trail; "" where there is none.

    Raises:
        RefusedInstance: status C000, it is no UID.
    """
    uid = str(value or "")
    if uid and not harmless_uid(uid):
        raise RefusedInstance(CANNOT_UNDERSTAND, f"{keyword} is not a UID; expected at most 64 digits and dots")
    return uid


def _references(header: FileDataset) -> tuple[References | None, str | None]:
    """What a lesion object names, or why it is unusable; (None, None) for everything that is not a lesion object."""
    try:
        return lesion_references(header), None
    except LesionError as error:
        return None, str(error)
    except Exception as error:  # hostile content must cost one instance, not the association
        return None, f"its content cannot be read ({type(error).__name__})"
