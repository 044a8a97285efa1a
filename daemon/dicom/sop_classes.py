"""The SOP Classes of lesion objects: known wherever an instance is received, without what reads them."""

from __future__ import annotations

from pydicom.uid import UID, SegmentationStorage

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage, newer than pydicom 3.0
SEGMENTATION_CLASSES = (SegmentationStorage, LABEL_MAP_STORAGE)
REPORT_CLASSES = "1.2.840.10008.5.1.4.1.1.88."  # every Structured Report storage class begins so (PS3.4 B.5)


def may_be_lesion_object(sop_class_uid: str) -> bool:
    """Whether `daemon.lesions.reader.lesion_references` can find anything in an instance of this class."""
    return sop_class_uid in SEGMENTATION_CLASSES or sop_class_uid.startswith(REPORT_CLASSES)
