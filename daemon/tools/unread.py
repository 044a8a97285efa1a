"""Kinds of objects that mark something and that mammod does not read, named for whoever sends one."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import MammographyCADSRStorage

from daemon.dicom.sop_classes import PRESENTATION_STATE_CLASSES, SEGMENTATION_CLASSES, SR_CLASS_PREFIX

_PREFIX = "1.2.840.10008.5.1.4.1.1."
_UNREAD = {
    f"{_PREFIX}481.3": "an RT Structure Set, whose contours in millimetres are not read",
    f"{_PREFIX}66.5": "a Surface Segmentation, whose surfaces in space are not read",
    f"{_PREFIX}66.8": "a Height Map Segmentation, which is not read",
    f"{_PREFIX}88.59": "a Key Object Selection, which names images and marks no place on them",
    f"{_PREFIX}481.11": "an RT Segment Annotation, which is not read",
    f"{_PREFIX}91.1": "Microscopy Bulk Simple Annotations, which are not of mammograms",
    f"{_PREFIX}66.6": "a Tractography Result, which is not of mammograms",
}
_READABLE = "expected a SEG, an SR with a region on an image, or a presentation state with a closed shape"


def why_no_lesion_object(dataset: Dataset) -> str | None:
    """Return what an object without lesions is, None if it is an image without overlays, or nothing known.

    To be asked if `daemon.lesions.reader.lesion_references` gives None.
    """
    sop_class = str(dataset.get("SOPClassUID") or "")
    if said := _UNREAD.get(sop_class):
        return f"this is {said}; {_READABLE}"
    if sop_class == MammographyCADSRStorage:
        return "this is a Mammography CAD SR without findings: there is nothing to classify"
    if sop_class.startswith(SR_CLASS_PREFIX):
        return "this is a structured report that marks no lesion's place on an image"
    if sop_class in PRESENTATION_STATE_CLASSES:
        return "this is a presentation state (GSPS) that draws no closed shape and no point"
    if sop_class in SEGMENTATION_CLASSES:
        return "this is a segmentation without segments"
    if any((element.tag.group & 0xFF01) == 0x6000 and element.tag.element == 0x3000 for element in dataset):
        return "this is an image with an overlay plane, which is not read as a mark"
    return None


def is_normal_without_lesions(dataset: Dataset) -> bool:
    """Return whether an object without lesions is a normal result: CAD that found nothing."""
    return dataset.get("SOPClassUID") == MammographyCADSRStorage
