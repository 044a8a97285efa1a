"""The SOP Classes that mammod knows, and what each is for. One list for all rooms."""

from __future__ import annotations

import functools

from pydicom.uid import (
    UID,
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MammographyCADSRStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UID_dictionary,
)

# Accepted by the listener beside storage: C-ECHO, and results of storage commitment (N-EVENT-REPORT).
VERIFICATION = UID("1.2.840.10008.1.1")
STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")

# Lesion objects: the outlines of lesions are read from these.
LABEL_MAP_SEGMENTATION = UID("1.2.840.10008.5.1.4.1.1.66.7")  # newer than pydicom 3.0
SEGMENTATION_CLASSES = (SegmentationStorage, LABEL_MAP_SEGMENTATION)
SR_CLASS_PREFIX = "1.2.840.10008.5.1.4.1.1.88."  # every structured report class begins so (PS3.4 B.5)

# Images that a lesion object may refer to: those that are missing are retrieved from the archive.
IMAGE_CLASSES = (
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ComputedRadiographyImageStorage,
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)

# Reports: an object of one of these classes may be a report of ours, also of an older or newer mammod.
OWN_REPORT_CLASSES = frozenset(
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

# Storage classes that pydicom 3.0 does not know yet: label map and height map segmentation, two waveform
# presentation states.
_NEWER_THAN_PYDICOM = (
    str(LABEL_MAP_SEGMENTATION),
    "1.2.840.10008.5.1.4.1.1.66.8",
    "1.2.840.10008.5.1.4.1.1.9.100.1",
    "1.2.840.10008.5.1.4.1.1.9.100.2",
)


def may_be_lesion_object(sop_class_uid: str) -> bool:
    """Return whether lesions can be read from an instance of this class (see `daemon.lesions.reader`)."""
    return sop_class_uid in SEGMENTATION_CLASSES or sop_class_uid.startswith(SR_CLASS_PREFIX)


@functools.cache
def storage_classes() -> tuple[str, ...]:
    """Return every storage SOP Class of the standard, sorted; retired and non-patient ones included."""
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and " Storage" in name and "Media Storage Directory" not in name
    }
    return tuple(sorted(named.union(_NEWER_THAN_PYDICOM)))
