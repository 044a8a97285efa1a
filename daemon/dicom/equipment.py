"""How mammod's reports say that they are mammod's, and how they are recognised when they come back."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MammographyCADSRStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from config import __version__
from daemon.dicom.uids import derive_uid

MANUFACTURER = "mammod (research software)"
MODEL_NAME = "mammod"
IMPLEMENTATION_CLASS_UID = UID(derive_uid("implementation"))
IMPLEMENTATION_VERSION_NAME = f"MAMMOD_{__version__}"[:16]

OWN_CLASSES = frozenset(
    {
        Comprehensive3DSRStorage,
        ComprehensiveSRStorage,
        EnhancedSRStorage,
        MammographyCADSRStorage,
        GrayscaleSoftcopyPresentationStateStorage,
        SecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
"""The SOP classes that any kind of report may have, also in an older or newer mammod."""


def is_own_report(dataset: Dataset) -> bool:
    """Whether `dataset` (its header is enough) is a report, presentation state or picture that some mammod wrote.

    Looks at SOP Class UID, Manufacturer and Manufacturer's Model Name only: an archive that changes the patient, the
    study or the UIDs of what it forwards does not hide a report. An object that another program derived from a report
    carries that program's name there and is not taken for one.
    """
    return (
        dataset.get("SOPClassUID") in OWN_CLASSES
        and _text(dataset, "Manufacturer") == MANUFACTURER
        and _text(dataset, "ManufacturerModelName") == MODEL_NAME
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
