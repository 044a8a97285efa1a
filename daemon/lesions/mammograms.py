"""Which images are mammograms: only mammograms are classified, whatever a lesion object marks."""

from __future__ import annotations

from collections.abc import Collection

from pydicom.dataset import Dataset
from pydicom.uid import UID

from daemon.lesions.references import code_of, items, same

_PREFIX = "1.2.840.10008.5.1.4.1.1."
_MAMMOGRAPHY = (f"{_PREFIX}1.2", f"{_PREFIX}1.2.1", f"{_PREFIX}13.1.3")  # FFDM (both intents); DBT
_PROJECTION_RADIOGRAPHY = (f"{_PREFIX}1", f"{_PREFIX}1.1", f"{_PREFIX}1.1.1")  # CR; DX (both intents)
_SECONDARY_CAPTURE = f"{_PREFIX}7"
# CT, MR, ultrasound, nuclear medicine and PET, with their enhanced, older and multi-frame classes.
_NEVER = tuple(f"{_PREFIX}{number}" for number in ("2", "3", "4", "5", "6", "20", "128", "130", "130.1"))
_BREAST = ("76752008", "181131000", "80248007", "73056007", "63762007")  # any, entire, left, right, both
_BODY_PARTS = ("BREAST",)  # PS3.16 Annex L


def why_no_mammogram(image: Dataset, more_classes: Collection[str] = ()) -> str | None:
    """Return why an image is not classified, None if it is a mammogram.

    Mammograms are Digital Mammography and Breast Tomosynthesis images, CR, DX or Secondary Capture images of
    modality MG, and CR or DX images whose Body Part Examined or Anatomic Region is the breast. `more_classes`
    adds SOP Class UIDs; ultrasound, MR, CT and nuclear images are never classified.
    """
    sop_class = str(image.get("SOPClassUID") or "")
    modality = str(image.get("Modality") or "")
    kind = f"it is {_name_of(sop_class)} of modality {modality or 'unknown'}"
    if _is_of(sop_class, _NEVER):
        return f"{kind}, which is never classified"
    if sop_class in _MAMMOGRAPHY or sop_class in more_classes:
        return None
    is_radiograph = sop_class in _PROJECTION_RADIOGRAPHY
    if modality == "MG" and (is_radiograph or _is_of(sop_class, (_SECONDARY_CAPTURE,))):
        return None
    if is_radiograph and _is_of_the_breast(image):
        return None
    return f"{kind}, and not a mammogram; only mammograms are classified"


def _is_of(sop_class: str, classes: Collection[str]) -> bool:
    """Return whether a class is in `classes` or below one (1.2.840.10008.5.1.4.1.1.2 and ...1.1.2.1)."""
    return any(sop_class == each or sop_class.startswith(f"{each}.") for each in classes)


def _is_of_the_breast(image: Dataset) -> bool:
    if str(image.get("BodyPartExamined") or "").strip().upper() in _BODY_PARTS:
        return True
    region = code_of(image, "AnatomicRegionSequence")
    return any(same(region, value, "SCT") for value in _BREAST)


def _name_of(sop_class: str) -> str:
    known = UID(sop_class).name if sop_class else ""
    return (
        f"a {known.removesuffix(' Storage')}" if known and known != sop_class else f"of SOP class {sop_class or 'none'}"
    )


def view_code_values(image: Dataset) -> tuple[set[str], set[str]]:
    """Return the code values of an image's views and of their modifiers (PS3.16 CID 4014, 4015)."""
    views, modifiers = set(), set()
    for view in items(image, "ViewCodeSequence"):
        views.add(str(view.get("CodeValue") or ""))
        modifiers |= {str(item.get("CodeValue") or "") for item in items(view, "ViewModifierCodeSequence")}
    return views, modifiers
