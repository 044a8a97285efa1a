"""Lesion objects: what a SEG or SR marks on mammograms, read as outlines in image pixels. Pure functions on data sets.

A new kind of lesion object is a module here that makes `Mark`s (reports) or adds `Lesion`s, and a line in `_marks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.dataset import Dataset

from daemon.dicom.sop_classes import SR_CLASS_PREFIX
from daemon.errors import LesionError
from daemon.lesions.cad_sr import CAD_ROOT, cad_marks
from daemon.lesions.generic_sr import generic_marks
from daemon.lesions.lesion import LesionReading
from daemon.lesions.marks import Mark, read_mark
from daemon.lesions.measurement_sr import measurement_marks
from daemon.lesions.references import MAX_LESIONS, Collected
from daemon.lesions.seg import is_segmentation, read_segments, source_images
from daemon.lesions.sr_tree import ContentTree

MAX_SHAPES = 20_000  # regions of one report; who marks so many marks no lesions
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class References:
    """What must be here before a lesion object can be read: SOP Instance UIDs, in the object's order, each once.

    `segmentation_uids` are the SEG objects that a report names instead of drawing a region. The images that those were
    drawn on (`lesion_references` of each) are needed as well; `image_uids` holds them only where the report names them.
    """

    image_uids: tuple[str, ...]
    segmentation_uids: tuple[str, ...]


def lesion_references(dataset: Dataset) -> References | None:
    """What a lesion object refers to; None where `dataset` is no lesion object (an image, a report without a region).

    A SEG may have been read without its Pixel Data.

    Raises:
        LesionError: it is a lesion object and names no image, so it can never be read; the message says why.
    """
    with _malformed_is_a_lesion_error():
        if is_segmentation(dataset):
            return References(source_images(dataset), ())
        return _references(_marks(dataset))


def read_lesions(
    source: Dataset,
    images: Mapping[str, Dataset],
    segmentations: Mapping[str, Dataset],
    not_lesions: Collection[str],
    max_lesions: int = MAX_LESIONS,
) -> LesionReading:
    """Read the lesions of a SEG or SR.

    Args:
        source: the lesion object; a SEG with its Pixel Data.
        images: headers of the images it names, by SOP Instance UID; Rows, Columns and Number of Frames are used.
        segmentations: the SEG objects, with Pixel Data, that a report names, by SOP Instance UID.
        not_lesions: "SCHEME:value" codes of segments and findings that are anatomy, not lesions.
        max_lesions: an object with more lesions is refused.

    Returns:
        The lesions in the object's order, with what was left out and why. One unreadable mark among readable ones is
        left out; an object that marks nothing but anatomy gives no lesions.

    Raises:
        LesionError: there is no lesion because what is marked cannot be read, with every reason; there are too many.
    """
    collected = Collected(max_lesions)
    uid = str(source.SOPInstanceUID)
    with _malformed_is_a_lesion_error():
        if is_segmentation(source):
            read_segments(source, images, not_lesions, collected)
        for mark in _marks(source):
            read_mark(mark, uid, images, segmentations, not_lesions, collected)
    if not (collected.lesions or collected.left_out):
        raise LesionError("it marks no region")
    if collected.failures and not collected.lesions:
        reasons = dict.fromkeys(f"{failure.what}: {failure.reason}" for failure in collected.failures)
        raise LesionError("; ".join(list(reasons)[:_REASONS_SHOWN]))
    return LesionReading(uid, tuple(collected.lesions), tuple(collected.left_out))


@contextmanager
def _malformed_is_a_lesion_error() -> Iterator[None]:
    """pydicom parses an element when it is first read, and raises almost anything at a malformed one."""
    try:
        yield
    except (LesionError, MemoryError):
        raise
    except Exception as error:
        raise LesionError(f"its content is malformed: {type(error).__name__} while reading it") from error


def _references(marks: list[Mark]) -> References | None:
    if not marks:
        return None
    wanted = [mark for mark in marks if not mark.left_out] or marks
    images = tuple(dict.fromkeys(uid for mark in wanted for uid in mark.image_uids))
    segmentations = tuple(dict.fromkeys(uid for mark in wanted for uid in mark.segmentation_uids))
    if not images and not segmentations:
        reasons = dict.fromkeys(mark.unusable for mark in wanted if mark.unusable)
        raise LesionError("; ".join(reasons) or "its regions name no image, or several, to lie on")
    return References(images, segmentations)


def _marks(dataset: Dataset) -> list[Mark]:
    if not str(dataset.get("SOPClassUID") or "").startswith(SR_CLASS_PREFIX):
        return []
    tree = ContentTree(dataset)
    marks = cad_marks(tree) if tree.root.named(*CAD_ROOT) else measurement_marks(tree) + generic_marks(tree)
    if (shapes := sum(len(mark.shapes) for mark in marks)) > MAX_SHAPES:
        raise LesionError(f"the report draws {shapes} regions; at most {MAX_SHAPES} are read")
    return marks
