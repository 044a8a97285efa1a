"""Puts a received instance into the spool and reads what pairing needs of it: all that needs no ledger."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.dataset import FileDataset

from daemon.dicom.equipment import is_own_report
from daemon.dicom.sop_classes import OWN_REPORT_CLASSES, may_be_lesion_object
from daemon.dicom.status import CANNOT_UNDERSTAND, OUT_OF_RESOURCES
from daemon.dicom.uids import is_safe_uid
from daemon.errors import LesionError, RefusedInstance, SpoolUnavailable
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool, SpoolFile

if TYPE_CHECKING:
    from daemon.lesions.reader import References

_large_lock = threading.Lock()  # a process reads one large instance at a time


@dataclass(frozen=True)
class SpooledInstance:
    """A received instance and its durable `file`, None for a report of ours, which is not kept (invariant 3).

    Both UIDs are "" if the data set has none. `references` are those of a lesion object; `unusable` says why
    a lesion object has none.
    """

    received: ReceivedInstance
    file: SpoolFile | None
    study_uid: str
    series_uid: str
    references: References | None
    unusable: str | None


def spool_instance(received: ReceivedInstance, spool: Spool) -> SpooledInstance:
    """Make an instance durable in the spool, unless it is one of our own reports.

    Raises:
        RefusedInstance: the data set cannot be understood, there is no room, or the spool's bucket refuses
            it.
        OSError: the spool cannot be written (disk full).
    """
    spool.check_room()
    with _large_lock if received.is_large else contextlib.nullcontext():
        header = _header_from_scan(received) or _read_header(received.path)
    file = None
    if not header.is_own_report:
        try:
            file = spool.add_instance(received.path, received.sop_instance_uid, received.digest)
        except SpoolUnavailable as error:
            raise spool_failure(error) from error
    return SpooledInstance(received, file, header.study_uid, header.series_uid, header.references, header.unusable)


def spool_failure(error: SpoolUnavailable) -> RefusedInstance:
    """Return how a sender is answered when the spool's bucket cannot be used: A700, it may send again."""
    return RefusedInstance(OUT_OF_RESOURCES, f"{error}; the instance may be sent again")


@dataclass(frozen=True)
class _Header:
    """What pairing needs of a data set; both UIDs are "" if it has none."""

    is_own_report: bool
    study_uid: str
    series_uid: str
    references: References | None
    unusable: str | None


def _header_from_scan(received: ReceivedInstance) -> _Header | None:
    """Return the header from what the scan found, None if the data set has to be read.

    It has to be if it may be a lesion object or a report of ours, or was not scanned for study and series.

    Raises:
        RefusedInstance: C000, study or series is not a UID.
    """
    may_be_either = may_be_lesion_object(received.sop_class_uid) or received.sop_class_uid in OWN_REPORT_CLASSES
    if may_be_either or received.study_uid is None or received.series_uid is None:
        return None
    study, series = received.study_uid, received.series_uid
    return _Header(False, _uid(study, "StudyInstanceUID"), _uid(series, "SeriesInstanceUID"), None, None)


def _read_header(path: Path) -> _Header:
    """Read the header with pydicom.

    Raises:
        RefusedInstance: C000, pydicom cannot read it, or study or series is not a UID.
    """
    try:
        with path.open("rb") as file:
            dataset = dcmread(file, stop_before_pixels=True)
        own = is_own_report(dataset)
        study = _uid(dataset.get("StudyInstanceUID"), "StudyInstanceUID")
        series = _uid(dataset.get("SeriesInstanceUID"), "SeriesInstanceUID")
    except RefusedInstance:
        raise
    except Exception as error:  # pydicom raises many kinds over broken input
        raise RefusedInstance(
            CANNOT_UNDERSTAND, f"the data set cannot be read as DICOM ({type(error).__name__}); send it whole and valid"
        ) from error
    references, unusable = (None, None) if own else _references(dataset)
    return _Header(own, study, series, references, unusable)


def _uid(value: object, keyword: str) -> str:
    """Return a UID that is safe to repeat in ledger, queries and audit trail; "" if there is none.

    Raises:
        RefusedInstance: C000, it is not a UID.
    """
    uid = str(value or "")
    if uid and not is_safe_uid(uid):
        raise RefusedInstance(CANNOT_UNDERSTAND, f"{keyword} is not a UID; expected at most 64 digits and dots")
    return uid


def _references(dataset: FileDataset) -> tuple[References | None, str | None]:
    """Return what a lesion object refers to, or why it is unusable; (None, None) for any other object."""
    # Imported late: it takes 30 MB of memory, which a process that receives only images never needs.
    from daemon.lesions.reader import lesion_references

    try:
        return lesion_references(dataset), None
    except LesionError as error:
        return None, str(error)
    except Exception as error:  # hostile content must cost one instance, not the association
        return None, f"its content cannot be read ({type(error).__name__})"
