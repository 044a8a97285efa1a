"""The SOP Classes of lesion objects: known wherever an instance is received, without what reads them."""

from __future__ import annotations

from pydicom.uid import (
    UID,
    BlendingSoftcopyPresentationStateStorage,
    ColorSoftcopyPresentationStateStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    PseudoColorSoftcopyPresentationStateStorage,
    SegmentationStorage,
)

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage, newer than pydicom 3.0
SEGMENTATION_CLASSES = (SegmentationStorage, LABEL_MAP_STORAGE)
PRESENTATION_STATE_CLASSES = (
    GrayscaleSoftcopyPresentationStateStorage,
    ColorSoftcopyPresentationStateStorage,
    PseudoColorSoftcopyPresentationStateStorage,
    BlendingSoftcopyPresentationStateStorage,
)
REPORT_CLASSES = "1.2.840.10008.5.1.4.1.1.88."  # every Structured Report storage class begins so (PS3.4 B.5)


def may_be_lesion_object(sop_class_uid: str) -> bool:
    """Return whether `daemon.lesions.reader.lesion_references` can find anything in an instance of this class."""
    named = (*SEGMENTATION_CLASSES, *PRESENTATION_STATE_CLASSES)
    return sop_class_uid in named or sop_class_uid.startswith(REPORT_CLASSES)
