"""How mammod identifies itself in its reports, and recognises its own reports when they come back."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from config import __version__
from daemon.dicom.sop_classes import OWN_REPORT_CLASSES
from daemon.dicom.uids import derive_uid

MANUFACTURER = "mammod (research software)"
MODEL_NAME = "mammod"
IMPLEMENTATION_CLASS_UID = UID(derive_uid("implementation"))
IMPLEMENTATION_VERSION_NAME = f"MAMMOD_{__version__}"[:16]


def is_own_report(dataset: Dataset) -> bool:
    """Return whether some mammod wrote `dataset` (a header is enough): a report, presentation state or image.

    Only SOP Class UID, Manufacturer and Manufacturer's Model Name count, so that a report is recognised even
    if an archive changed the patient, the study or the UIDs. A program that derives an object from a report
    puts its own name there, and that object is not a report of mammod.
    """
    return (
        dataset.get("SOPClassUID") in OWN_REPORT_CLASSES
        and _text(dataset, "Manufacturer") == MANUFACTURER
        and _text(dataset, "ManufacturerModelName") == MODEL_NAME
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
