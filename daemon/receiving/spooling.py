"""A received instance is placed in the spool, and read for what pairing wants to know of it: all that needs no ledger."""

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

_one_large = threading.Lock()  # to be read at a time, in each process


@dataclass(frozen=True)
class SpooledInstance:
    """A received instance and its durable `file`; None for one of our own reports, which is not kept (invariant 3).

    Both UIDs are empty where they are none. `references` are those of a lesion object; `unusable` says why it has none.
    """

    incoming: ReceivedInstance
    file: SpoolFile | None
    study_uid: str
    series_uid: str
    references: References | None
    unusable: str | None


def spool_instance(incoming: ReceivedInstance, spool: Spool) -> SpooledInstance:
    """
    Raises:
        RefusedInstance: the data set cannot be understood, there is no room, or the spool's bucket does not take it.
        OSError: the spool cannot be written (disk full).
    """
    spool.check_room()
    with _one_large if incoming.is_large else contextlib.nullcontext():
        read = _seen(incoming) or _read(incoming.path)
    file = None
    if not read.is_own_report:
        try:
            file = spool.add_instance(incoming.path, incoming.sop_instance_uid, incoming.digest)
        except SpoolUnavailable as error:
            raise spool_failure(error) from error
    return SpooledInstance(incoming, file, read.study_uid, read.series_uid, read.references, read.unusable)


def spool_failure(error: SpoolUnavailable) -> RefusedInstance:
    return RefusedInstance(OUT_OF_RESOURCES, f"{error}; the instance may be sent again")


@dataclass(frozen=True)
class _Read:
    """What intake wants to know of a data set: both UIDs are empty where they are none."""

    is_own_report: bool
    study_uid: str
    series_uid: str
    references: References | None
    unusable: str | None


def _seen(incoming: ReceivedInstance) -> _Read | None:
    """What needs no second look: an instance that is neither lesion object nor report. None where one has to look.

    Raises:
        RefusedInstance: status C000, study or series is no UID.
    """
    may_be_either = may_be_lesion_object(incoming.sop_class_uid) or incoming.sop_class_uid in OWN_REPORT_CLASSES
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
    if uid and not is_safe_uid(uid):
        raise RefusedInstance(CANNOT_UNDERSTAND, f"{keyword} is not a UID; expected at most 64 digits and dots")
    return uid


def _references(header: FileDataset) -> tuple[References | None, str | None]:
    """What a lesion object names, or why it is unusable; (None, None) for everything that is not a lesion object."""
    from daemon.lesions.reader import (
        lesion_references,  # 30 MB of memory, for each process that receives no more than images
    )

    try:
        return lesion_references(header), None
    except LesionError as error:
        return None, str(error)
    except Exception as error:  # hostile content must cost one instance, not the association
        return None, f"its content cannot be read ({type(error).__name__})"
