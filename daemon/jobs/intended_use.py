"""What a bundle was made for: the kinds of lesion, image types and views that its manifest names, if any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage, SecondaryCaptureImageStorage

from daemon.lesions.lesion import LeftOut, Lesion, LesionReading
from daemon.lesions.mammograms import view_code_values
from daemon.lesions.references import same
from daemon.reports.case import Algorithm

OUTSIDE = "outside the intended use of this model"
# SNOMED CT (PS3.16 CID 6014, 6015, 6016). A code that is in none, such as "lesion", tells no kind.
_KINDS = {
    "mass": ("4147007", "129788004", "129793001", "27925004", "367643001", "399294002", "254845004"),
    "calcification": ("129748009", "129769006", "129770007", "44771000", "309587003"),
    "distortion": ("129792006",),
    "asymmetry": ("129789007", "129790003", "129794007"),
    "skin": ("129797000", "129796009", "95324001"),
}
_VIEWS = {
    "399162004": "CC", "399368009": "MLO", "399260004": "ML", "399352003": "LM", "399099002": "LMO", "399188001": "SIO",
    "127457009": "SPECIMEN",
}  # fmt: skip
_SPECIAL_VIEWS = {
    "127457009": "shows a specimen",
    "399209000": "is an implant-displaced view",
    "399163009": "is a magnification view",
}


def within_intended_use(
    reading: LesionReading, images: Mapping[str, Dataset], algorithm: Algorithm, *, is_left_out: bool
) -> LesionReading:
    """Return the reading with lesions outside the intended use left out, or else named in its notes.

    Specimen, implant-displaced and magnification views of the lesions that stay are named in the notes.
    `images` are headers by SOP Instance UID.
    """
    kept: list[Lesion] = []
    left_out, notes = list(reading.left_out), list(reading.notes)
    for number, lesion in enumerate(reading.lesions, start=1):
        reason = _why_outside(lesion, images[lesion.image_uid], algorithm)
        if reason and is_left_out:
            left_out.append(LeftOut(f"lesion {number}", f"{OUTSIDE}: {reason}"))
            continue
        if reason:
            notes.append(f"Lesion {number} of the lesion object is {OUTSIDE}: {reason}.")
        kept.append(lesion)
    for uid in dict.fromkeys(lesion.image_uid for lesion in kept):
        views, modifiers = view_code_values(images[uid])
        notes += [f"Image {uid} {said}." for value, said in _SPECIAL_VIEWS.items() if value in views | modifiers]
    return replace(reading, lesions=tuple(kept), left_out=tuple(left_out), notes=tuple(notes))


def kind_of(lesion: Lesion) -> str | None:
    """Return the kind that the codes of a lesion name, None if they name none."""
    codes = (lesion.finding, *lesion.labels)
    for kind, values in _KINDS.items():
        if any(same(code, value, "SCT") for code in codes for value in values):
            return kind
    return None


def image_type_of(image: Dataset) -> str:
    """Return "tomosynthesis", "synthetic" (a view computed from one), "film" (a scan) or "digital"."""
    if "GENERATED_2D" in (image.get("ImageType") or ()):
        return "synthetic"
    if image.get("SOPClassUID") == BreastTomosynthesisImageStorage:
        return "tomosynthesis"
    is_capture = str(image.get("SOPClassUID") or "").startswith(SecondaryCaptureImageStorage)
    return "film" if is_capture else "digital"


def view_of(image: Dataset) -> str | None:
    """Return the abbreviation of an image's view, such as "CC", None if it does not say."""
    position = str(image.get("ViewPosition") or "").strip().upper()
    views, _ = view_code_values(image)
    return next((_VIEWS[value] for value in sorted(views) if value in _VIEWS), position or None)


def _why_outside(lesion: Lesion, image: Dataset, algorithm: Algorithm) -> str | None:
    facts = (
        ("lesions of kind", kind_of(lesion), algorithm.kinds),
        ("images of type", image_type_of(image), algorithm.image_types),
        ("views", view_of(image), algorithm.views),
    )
    for what, fact, allowed in facts:
        if allowed and fact and fact not in allowed:
            return f"it was made for {what} {', '.join(allowed)}, and this is {fact}"
    return None
