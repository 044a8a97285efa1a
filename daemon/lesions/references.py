"""Image references and coded concepts of lesion objects, and the collected reading."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.coding import Code as SrCode

from daemon.dicom.sop_classes import SEGMENTATION_CLASSES
from daemon.dicom.uids import is_safe_uid
from daemon.errors import LesionError
from daemon.lesions.lesion import Code, LeftOut, Lesion
from model.image import MAX_PIXELS

_OLD_SNOMED = ("SNM3", "99SDM")  # designators of SNOMED-RT before SRT (PS3.16 8.2)


class TooManyLesions(LesionError):
    """The whole object is refused, not just a mark."""


class NotClassified(LesionError):
    """A readable mark is not to be classified; the message says why."""


@dataclass(frozen=True)
class ImageReference:
    """A reference to an image or segmentation instance, with frame and segment numbers (from 1) if any."""

    sop_class_uid: str
    sop_instance_uid: str
    frames: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()

    @property
    def to_segmentation(self) -> bool:
        """Whether the instance is a segmentation."""
        return self.sop_class_uid in SEGMENTATION_CLASSES


def image_reference(item: Dataset) -> ImageReference | None:
    """Read an item of the SOP Instance Reference or Image SOP Instance Reference macro (PS3.3 10.8, 10.3)."""
    uid = uid_of(item, "ReferencedSOPInstanceUID")
    if uid is None:
        return None
    return ImageReference(
        uid_of(item, "ReferencedSOPClassUID") or "",
        uid,
        numbers(item, "ReferencedFrameNumber"),
        numbers(item, "ReferencedSegmentNumber"),
    )


def uid_of(item: Dataset, keyword: str) -> str | None:
    """Return a UID, None if absent or malformed, so that it is safe to repeat anywhere."""
    uid = str(item.get(keyword) or "")
    return uid if is_safe_uid(uid) else None


def numbers(item: Dataset, keyword: str) -> tuple[int, ...]:
    """Return the integers of an attribute of any multiplicity; none if it is absent or empty."""
    value = item.get(keyword)
    if value is None or value == "":
        return ()
    values = value if isinstance(value, (MultiValue, list)) else [value]
    try:
        return tuple(int(number) for number in values)
    except (TypeError, ValueError) as error:
        raise LesionError(f"{keyword} is not a number") from error


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is absent, empty or not a sequence."""
    return [item for item in dataset.get(keyword) or () if isinstance(item, Dataset)]


def code_of(dataset: Dataset, keyword: str) -> Code | None:
    """Return the first item of a code sequence (PS3.3 section 8), as the source writes it."""
    for item in items(dataset, keyword):
        value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
        if value:
            scheme = str(item.get("CodingSchemeDesignator") or "")
            return Code(str(value), scheme, str(item.get("CodeMeaning") or ""))
    return None


def same(code: Code | None, value: str, scheme: str) -> bool:
    """Return whether a code is `value` of `scheme`; SNOMED-RT identifiers count as their SNOMED CT code."""
    if code is None:
        return False
    own_scheme = "SRT" if code.scheme in _OLD_SNOMED else code.scheme
    if "SRT" not in (own_scheme, scheme):
        return (code.value, own_scheme) == (value, scheme)
    return bool(SrCode(code.value, own_scheme, "") == SrCode(value, scheme, ""))


def listed_code(codes: Iterable[Code | None], listing: Collection[str]) -> Code | None:
    """Return the first of `codes` that `listing` ("SCHEME:value") names."""
    pairs = [listed.partition(":") for listed in listing]
    for code in codes:
        if any(same(code, value, scheme) for scheme, _, value in pairs):
            return code
    return None


def numbered(name: str | None, number: int | None) -> str | None:
    """Return a tracking identifier shared by several lesions, made distinct by `number`."""
    return name if name is None or number is None else f"{name} ({number})"


def image_frame(reference: ImageReference, images: Mapping[str, Dataset]) -> tuple[Dataset, int]:
    """Return the header of the referenced image and the frame (from 1); of several frames, the middle one.

    Raises:
        LesionError: the image is not in `images`, has no size, or the frame is missing or out of range.
    """
    image = images.get(reference.sop_instance_uid)
    if image is None:
        raise LesionError(f"image {reference.sop_instance_uid} is not here")
    size(image)
    total = int(image.get("NumberOfFrames") or 1)
    if not reference.frames and total > 1:
        raise LesionError(f"no frame is named of image {reference.sop_instance_uid}, which has {total}")
    frames = reference.frames or (1,)
    wrong = [frame for frame in frames if not 1 <= frame <= total]
    if wrong:
        raise LesionError(f"frame {wrong[0]} is named of image {reference.sop_instance_uid}, which has {total}")
    return image, sorted(frames)[(len(frames) - 1) // 2]


def size(image: Dataset) -> tuple[int, int]:
    """Return (rows, columns) of an image.

    Raises:
        LesionError: it has no size, so it is no image.
    """
    rows, columns = image.get("Rows"), image.get("Columns")
    if not rows or not columns:
        raise LesionError(f"instance {image.get('SOPInstanceUID')} has no rows and columns: it is not an image")
    if int(rows) * int(columns) > MAX_PIXELS:
        raise LesionError(
            f"an image of {rows} rows x {columns} columns cannot be: at most {MAX_PIXELS:,} pixels are read"
        )
    return int(rows), int(columns)


@dataclass
class Collected:
    """Lesions and exclusions collected while one lesion object is read, up to `max_lesions`."""

    max_lesions: int
    lesions: list[Lesion] = field(default_factory=list)
    left_out: dict[LeftOut, None] = field(default_factory=dict)  # in order, each once
    failures: dict[LeftOut, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # sentences for the report

    def add(self, lesion: Lesion) -> None:
        """Add a lesion; raises TooManyLesions beyond `max_lesions`."""
        if len(self.lesions) >= self.max_lesions:
            raise TooManyLesions(f"it marks more than {self.max_lesions} lesions (lesions.max_per_object)")
        self.lesions.append(lesion)

    def leave_out(self, what: str, reason: str) -> None:
        """Record what is deliberately no lesion."""
        self._record(LeftOut(what, reason))

    def fail(self, what: str, error: LesionError) -> None:
        """Record an unreadable lesion."""
        failure = LeftOut(what, str(error))
        self._record(failure)
        if not isinstance(error, NotClassified):
            self.failures[failure] = None

    def _record(self, left_out: LeftOut) -> None:
        self.left_out[left_out] = None
