"""Whether a lesion object and an image are of the same patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydicom.dataset import Dataset

from daemon.errors import LesionError


def check_patient(source: Dataset, images: Iterable[Dataset]) -> None:
    """Check that a lesion object and its images are of one patient.

    Raises:
        LesionError: an attribute contradicts; the message names the attribute but not its value.
    """
    for image in images:
        if difference := contradiction(source, image):
            raise LesionError(
                f"its patient is not that of image {image.get('SOPInstanceUID')}: {difference} differs; correct one of "
                "the two and send it again"
            )


def other_studies(source: Dataset, images: Mapping[str, Dataset]) -> list[str]:
    """Return a sentence for each image (by SOP Instance UID) of another study than the lesion object."""
    own = str(source.get("StudyInstanceUID") or "")
    return [
        f"Image {uid} belongs to another study of the same patient than the object that marks the lesions."
        for uid, image in images.items()
        if own and image.get("StudyInstanceUID") and str(image.StudyInstanceUID) != own
    ]


def contradiction(source: Dataset, image: Dataset) -> str | None:
    """Return the attribute by which a lesion object and an image are of two patients, else None.

    Patient IDs are compared with their issuers; name and birth date only if one side has no ID. A missing
    attribute contradicts nothing. The message goes to the log and repeats no value.
    """
    own, other = _text(source, "PatientID"), _text(image, "PatientID")
    if own and other:
        if own != other:
            return "Patient ID"
        return "Issuer of Patient ID" if _differ(source, image, "IssuerOfPatientID") else None
    if _differ(source, image, "PatientBirthDate"):
        return "Patient's Birth Date"
    return "Patient's Name" if _names_differ(_text(source, "PatientName"), _text(image, "PatientName")) else None


def _differ(source: Dataset, image: Dataset, keyword: str) -> bool:
    own, other = _text(source, keyword), _text(image, keyword)
    return bool(own and other and own != other)


def _names_differ(own: str, other: str) -> bool:
    """Return whether family or given names (first representation) differ, ignoring case and empty parts."""
    first, second = (
        [part.strip().casefold() for part in name.partition("=")[0].split("^")[:2]] for name in (own, other)
    )
    return any(mine and theirs and mine != theirs for mine, theirs in zip(first, second, strict=False))


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
