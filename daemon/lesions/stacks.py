"""Slices of one tomosynthesis: marks of one name on several slices are one lesion, on its best slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import BreastTomosynthesisImageStorage

from daemon.lesions.geometry import area
from daemon.lesions.lesion import Lesion
from daemon.lesions.mammograms import view_code_values
from daemon.lesions.references import Collected, numbers

Stack = tuple[str, ...]


def slice_of(image: Dataset, frame: int) -> tuple[Stack, int]:
    """Return the stack that a frame (from 1) belongs to and its number in it.

    A multi-frame image is a stack. Single instances are a stack if they share series, view and laterality,
    and are Breast Tomosynthesis Images or share a frame of reference: four views in one series are no stack.
    """
    uid = str(image.SOPInstanceUID)
    if int(image.get("NumberOfFrames") or 1) > 1:
        return (uid,), frame
    reference = str(image.get("FrameOfReferenceUID") or "")
    if image.get("SOPClassUID") != BreastTomosynthesisImageStorage and not reference:
        return (uid,), frame
    views, modifiers = view_code_values(image)
    kind = (str(image.get(keyword) or "") for keyword in ("SeriesInstanceUID", "ImageLaterality", "ViewPosition"))
    instance = numbers(image, "InstanceNumber")
    return (*kind, reference, *sorted(views), *sorted(modifiers)), instance[0] if instance else 0


def on_best_slices(
    lesions: Sequence[Lesion], images: Mapping[str, Dataset], what: str, collected: Collected
) -> list[Lesion]:
    """Return one mark's lesions, each stack's only on its best slice: the one with the largest outlines.

    Of slices with outlines of equal size, or points, the middle one is used. `what` names the mark if lesions
    on other slices are left out.
    """
    stacks: dict[Stack, dict[tuple[int, str, int], list[Lesion]]] = {}
    for lesion in lesions:
        stack, number = slice_of(images[lesion.image_uid], lesion.frame)
        place = (number, lesion.image_uid, lesion.frame)
        stacks.setdefault(stack, {}).setdefault(place, []).append(lesion)
    kept: list[Lesion] = []
    for places in stacks.values():
        sizes = {place: sum(area(lesion.outline) for lesion in here) for place, here in places.items()}
        largest = sorted(place for place, size in sizes.items() if size == max(sizes.values()))
        best = largest[(len(largest) - 1) // 2]
        kept += places[best]
        if len(places) > 1:
            collected.leave_out(
                what, f"it is outlined on {len(places)} slices: one lesion, classified on frame {best[0]}, its best"
            )
    return kept


def one_lesion_per_tracking_uid(collected: Collected, images: Mapping[str, Dataset]) -> list[Lesion]:
    """Return the lesions read; those of one Tracking UID on slices of a stack only on the best slice."""
    tracked: dict[str, list[Lesion]] = {}
    for lesion in collected.lesions:
        if lesion.tracking_uid:
            tracked.setdefault(lesion.tracking_uid, []).append(lesion)
    dropped: set[int] = set()
    for uid, several in tracked.items():
        if len(several) > 1:
            kept = on_best_slices(several, images, f"tracking UID {uid}", collected)
            dropped |= {id(lesion) for lesion in several} - {id(lesion) for lesion in kept}
    return [lesion for lesion in collected.lesions if id(lesion) not in dropped]
