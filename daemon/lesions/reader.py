"""Read what a SEG or SR marks on mammograms as outlines in image pixels, by pure functions on data sets.

A new kind of lesion object needs a module that makes `Mark`s (reports) or `Lesion`s, and a line in `_marks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.dicom.sop_classes import PRESENTATION_STATE_CLASSES, SR_CLASS_PREFIX
from daemon.errors import LesionError
from daemon.lesions.cad_sr import CAD_ROOT, cad_marks
from daemon.lesions.generic_sr import generic_marks
from daemon.lesions.lesion import LesionReading
from daemon.lesions.marks import Mark, read_mark
from daemon.lesions.measurement_sr import measurement_marks
from daemon.lesions.patients import check_patient, other_studies
from daemon.lesions.presentation_state import presentation_marks
from daemon.lesions.references import Collected
from daemon.lesions.seg import is_segmentation, read_segments
from daemon.lesions.seg_frames import source_images
from daemon.lesions.sr_tree import ContentTree
from daemon.lesions.stacks import one_lesion_per_tracking_uid

MAX_SHAPES = 20_000  # regions of one report; so many are not lesions
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class References:
    """Instances needed to read a lesion object: SOP Instance UIDs in the object's order, each once.

    `segmentation_uids` are the SEG objects that a report names instead of drawing a region. Their images
    (`lesion_references` of each) are needed too; `image_uids` holds only those that the report names.
    """

    image_uids: tuple[str, ...]
    segmentation_uids: tuple[str, ...]


def lesion_references(dataset: Dataset) -> References | None:
    """Return a lesion object's references; None for other objects (an image, a report without a region).

    A SEG does not need its Pixel Data.

    Raises:
        LesionError: a lesion object that names no image, so can never be read; the message says why.
    """
    with _malformed_is_a_lesion_error():
        if is_segmentation(dataset):
            return References(source_images(dataset), ())
        return _references(_marks(dataset))


def read_lesions(
    source: Dataset,
    images: Mapping[str, Dataset],
    segmentations: Mapping[str, Dataset],
    settings: Lesions,
) -> LesionReading:
    """Read the lesions of a SEG or SR.

    Args:
        source: the lesion object; a SEG with its Pixel Data.
        images: headers of its images by SOP Instance UID; Rows, Columns and Number of Frames are used.
        segmentations: the SEG objects, with Pixel Data, that a report names, by SOP Instance UID.
        settings: what counts as a lesion, and how many one object may mark.

    Returns:
        The lesions in the object's order, with what was left out and why. An unreadable mark among readable
        ones is left out; an object that marks only anatomy gives no lesions.

    Raises:
        LesionError: no mark can be read (with every reason), or there are too many lesions.
    """
    collected = Collected(settings.max_per_object)
    uid = str(source.SOPInstanceUID)
    with _malformed_is_a_lesion_error():
        check_patient(source, images.values())
        if is_segmentation(source):
            read_segments(source, images, settings, collected)
        for mark in _marks(source):
            read_mark(mark, uid, images, segmentations, settings, collected)
        lesions = one_lesion_per_tracking_uid(collected, images)
    if not (lesions or collected.left_out):
        raise LesionError("it marks no region")
    if collected.failures and not lesions:
        reasons = dict.fromkeys(f"{failure.what}: {failure.reason}" for failure in collected.failures)
        raise LesionError("; ".join(list(reasons)[:_REASONS_SHOWN]))
    used = {lesion.image_uid: images[lesion.image_uid] for lesion in lesions}
    notes = (*other_studies(source, used), *dict.fromkeys(collected.notes))
    return LesionReading(uid, tuple(lesions), tuple(collected.left_out), notes)


@contextmanager
def _malformed_is_a_lesion_error() -> Iterator[None]:
    """Turn parsing errors into LesionError: pydicom parses elements lazily and raises almost anything."""
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
    sop_class = str(dataset.get("SOPClassUID") or "")
    if sop_class in PRESENTATION_STATE_CLASSES:
        marks = presentation_marks(dataset)
    elif sop_class.startswith(SR_CLASS_PREFIX):
        tree = ContentTree(dataset)
        marks = cad_marks(tree) if tree.root.named(*CAD_ROOT) else measurement_marks(tree) + generic_marks(tree)
    else:
        return []
    if (shapes := sum(len(mark.shapes) for mark in marks)) > MAX_SHAPES:
        raise LesionError(f"the report draws {shapes} regions; at most {MAX_SHAPES} are read")
    return marks
