"""SEG objects: segments of a Segmentation (BINARY, FRACTIONAL) or Label Map Segmentation (PS3.3 C.8.20)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.dicom.sop_classes import SEGMENTATION_CLASSES
from daemon.errors import LesionError
from daemon.lesions.anatomy import Naming, why_no_lesion
from daemon.lesions.geometry import outline_of_mask, region_of_outline
from daemon.lesions.lesion import Code, Lesion
from daemon.lesions.mammograms import why_no_mammogram
from daemon.lesions.plausibility import why_implausible
from daemon.lesions.references import (
    Collected,
    NotClassified,
    code_of,
    items,
    numbered,
    numbers,
    same,
    uid_of,
)
from daemon.lesions.seg_frames import decode_frame, image_and_frame, segmentation_frames
from daemon.lesions.seg_grid import grid_of, on_grid
from daemon.lesions.seg_parts import SPECK_FRACTION, SPECK_PIXELS, SegmentPart, parts_of_lesions, parts_of_mask
from daemon.lesions.stacks import slice_of

MAX_PARTS_OF_ALL = 5000  # of all segments on all frames
MAX_SEGMENTS = 1000

_TISSUE = ("85756007", "SCT")  # viewers' code for a segment that nobody named
_SIDES = (("7771000", "SCT"), ("24028007", "SCT"), ("51440002", "SCT"))  # left, right, both


def is_segmentation(dataset: Dataset) -> bool:
    """Return whether a data set is a SEG of any kind."""
    return dataset.get("SOPClassUID") in SEGMENTATION_CLASSES


def read_segments(
    dataset: Dataset,
    images: Mapping[str, Dataset],
    settings: Lesions,
    collected: Collected,
    *,
    only: Collection[int] = (),
    on_frames: Collection[int] = (),
) -> None:
    """Add the lesions of a SEG to `collected`: one per 8-connected component of each segment.

    Components that overlap on successive frames of a multi-frame image are one lesion, drawn on the frame
    with the largest. `only` gives the segments and `on_frames` the SEG's frames (from 1) to read; empty: all.

    Raises:
        LesionError: the SEG itself is unusable (no segments, unknown type, no pixel data).
    """
    is_labelmap, threshold = _kind(dataset)
    described = _described(dataset)
    background = _background(dataset)
    if is_labelmap:
        described.pop(background, None)
    wanted = _wanted_segments(described, settings, collected, only)
    parts: dict[int, list[SegmentPart]] = {number: [] for number in wanted}
    failed: set[int] = set()
    for frame in segmentation_frames(dataset):
        if on_frames and frame.index + 1 not in on_frames:
            continue
        if not is_labelmap and frame.segment not in described:
            collected.fail(f"frame {frame.index + 1}", LesionError("it names no segment of the Segment Sequence"))
        present = list(wanted) if is_labelmap else [frame.segment] if frame.segment in wanted else []
        if not present:
            continue
        if sum(map(len, parts.values())) > MAX_PARTS_OF_ALL:
            raise LesionError(
                f"the segmentation has more than {MAX_PARTS_OF_ALL} separate parts: noise, not marked lesions"
            )
        try:
            place = image_and_frame(dataset, frame, images)
            if reason := why_no_mammogram(images[place[0]], settings.image_classes):
                raise NotClassified(f"image {place[0]}: {reason}")
            grid = grid_of(dataset, frame.index, images[place[0]], place[1], settings, collected)
            pixels = on_grid(decode_frame(dataset, frame.index), grid, background if is_labelmap else 0)
        except LesionError as error:
            failed.update(present)
            for segment in present:
                collected.fail(f"segment {segment}", error)
            continue
        masks = _masks(pixels, present) if is_labelmap else {present[0]: pixels >= threshold}
        for segment, mask in masks.items():
            try:
                parts[segment] += parts_of_mask(mask, *place, *slice_of(images[place[0]], place[1]))
            except LesionError as error:
                failed.add(segment)
                collected.fail(f"segment {segment}", error)
        if is_labelmap:
            _leave_out_unknown_labels(pixels, {background, *described}, collected)
    for segment, item in wanted.items():
        if parts[segment]:
            _add_lesions(dataset, segment, item, parts[segment], images, settings, collected)
        elif segment not in failed:
            collected.leave_out(f"segment {segment}", "no pixel is marked")


def _masks(pixels: np.ndarray, segments: Collection[int]) -> dict[int, np.ndarray]:
    """Return the mask of each of `segments` that a frame (rows, columns) of a label map holds, in order."""
    present = sorted(set(np.unique(pixels).tolist()).intersection(segments))
    return {segment: pixels == segment for segment in present}


def _kind(dataset: Dataset) -> tuple[bool, float]:
    """Return whether it is a label map, and a BINARY or FRACTIONAL segment's lowest stored value."""
    kind = dataset.get("SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise LesionError(f"segmentation type {kind!r} is none of BINARY, FRACTIONAL, LABELMAP")
    if kind != "FRACTIONAL":
        return kind == "LABELMAP", 1
    maximum = dataset.get("MaximumFractionalValue")
    if not maximum:
        raise LesionError("a FRACTIONAL segmentation without Maximum Fractional Value cannot be thresholded")
    return False, int(maximum) / 2


def _described(dataset: Dataset) -> dict[int, Dataset]:
    segments = {number: item for item in items(dataset, "SegmentSequence") for number in numbers(item, "SegmentNumber")}
    if not segments:
        raise LesionError("the segmentation describes no segment: its Segment Sequence is empty")
    if len(segments) > MAX_SEGMENTS:
        raise LesionError(f"the segmentation describes {len(segments)} segments; at most {MAX_SEGMENTS} are read")
    return segments


def _background(dataset: Dataset) -> int:
    """Return a label map's stored value for no segment (PS3.3 C.8.20.2)."""
    return int(dataset.get("PixelPaddingValue") or 0)


def _wanted_segments(
    described: Mapping[int, Dataset], settings: Lesions, collected: Collected, only: Collection[int]
) -> dict[int, Dataset]:
    for number in only:
        if number not in described:
            collected.fail(f"segment {number}", LesionError("the segmentation has no such segment"))
    wanted = {}
    for number, item in described.items():
        if only and number not in only:
            continue
        if reason := why_no_lesion(_naming(item), settings):
            collected.leave_out(f"segment {number}", reason)
        else:
            wanted[number] = item
    return wanted


def _naming(segment: Dataset) -> Naming:
    kind = code_of(segment, "SegmentedPropertyTypeCodeSequence")
    category = code_of(segment, "SegmentedPropertyCategoryCodeSequence")
    label = str(segment.get("SegmentLabel") or "")
    return Naming((kind,) if kind else (), (label,) if label else (), (category,) if category else ())


def _leave_out_unknown_labels(pixels: np.ndarray, known: Collection[int], collected: Collected) -> None:
    for value in np.unique(pixels):
        if value not in known:
            collected.leave_out(f"label {value}", "the Segment Sequence does not describe it")


def _add_lesions(
    dataset: Dataset,
    segment: int,
    item: Dataset,
    parts: list[SegmentPart],
    images: Mapping[str, Dataset],
    settings: Lesions,
    collected: Collected,
) -> None:
    largest = max(part.pixels for part in parts)
    specks = [part for part in parts if part.pixels < SPECK_PIXELS and part.pixels < SPECK_FRACTION * largest]
    for speck in specks:
        collected.leave_out(
            f"segment {segment}, {speck.pixels} pixels at row {speck.row}, column {speck.column}",
            f"a stray speck beside a part of {largest} pixels",
        )
    is_one_lesion = uid_of(item, "TrackingUID") is not None
    lesions = parts_of_lesions([part for part in parts if part not in specks], is_tracked=is_one_lesion)
    for number, lesion in enumerate(lesions, start=1):
        shown = max(lesion, key=lambda part: part.pixels)
        if len(lesion) > 1:
            collected.leave_out(
                f"segment {segment}, {len(lesion) - 1} more frames of one lesion",
                f"it is shown on frame {shown.frame}, where it is largest",
            )
        found = _lesion(dataset, item, shown, number if len(lesions) > 1 else None)
        if reason := why_implausible(found.region, found.outline, images[found.image_uid], settings):
            collected.leave_out(f"segment {segment}", reason)
        else:
            collected.add(found)


def _lesion(dataset: Dataset, segment: Dataset, part: SegmentPart, number: int | None) -> Lesion:
    """Return the lesion of a part; `number` counts those of a segment that share its Tracking UID."""
    outline = outline_of_mask(part.mask) + np.array([part.column, part.row])
    name = str(segment.get("TrackingID") or segment.get("SegmentLabel") or "") or None
    naming = _naming(segment)
    finding = code_of(segment, "SegmentedPropertyTypeCodeSequence")
    return Lesion(
        source_uid=str(dataset.SOPInstanceUID),
        image_uid=part.image_uid,
        frame=part.frame,
        outline=outline,
        region=region_of_outline(outline),
        tracking_id=numbered(name, number),
        tracking_uid=uid_of(segment, "TrackingUID") if number is None else None,
        finding=None if same(finding, *_TISSUE) else finding,
        finding_site=code_of(segment, "AnatomicRegionSequence"),
        laterality=_laterality(segment),
        labels=naming.types + naming.categories,
    )


def _laterality(segment: Dataset) -> Code | None:
    modified = [(region, "AnatomicRegionModifierSequence") for region in items(segment, "AnatomicRegionSequence")]
    modified += [
        (kind, "SegmentedPropertyTypeModifierCodeSequence")
        for kind in items(segment, "SegmentedPropertyTypeCodeSequence")
    ]
    for holder, keyword in modified:
        code = code_of(holder, keyword)
        if any(same(code, *side) for side in _SIDES):
            return code
    return None
