"""SEG objects: segments of a Segmentation (BINARY, FRACTIONAL) or Label Map Segmentation (PS3.3 C.8.20)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless
from scipy import ndimage

from daemon.dicom.sop_classes import SEGMENTATION_CLASSES
from daemon.errors import LesionError
from daemon.lesions.geometry import outline_of_mask, region_of_outline
from daemon.lesions.lesion import Code, Lesion
from daemon.lesions.references import (
    Collected,
    ImageReference,
    code_of,
    image_frame,
    image_reference,
    is_not_a_lesion,
    items,
    numbered,
    numbers,
    same,
    size,
    uid_of,
)

# A part of fewer pixels is a stray speck where the same segment also has one a hundred times as large; where all parts
# are small (marked calcifications) every one is a lesion.
SPECK_PIXELS = 9
SPECK_SHARE = 0.01
MAX_PARTS = 500  # of one segment on one frame; more is noise and not what a reader marked
MAX_PARTS_OF_ALL = 5000  # of all segments on all frames
MAX_SEGMENTS = 1000

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_TISSUE = ("85756007", "SCT")  # what viewers write for a segment that nobody named
# GDCM ends the whole process at some data it does not expect, so others decode what others can.
_DECODERS = {
    RLELossless: "pydicom",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
}
_SIDES = (("7771000", "SCT"), ("24028007", "SCT"), ("51440002", "SCT"))  # left, right, both


@dataclass(frozen=True)
class _Frame:
    """One frame of a segmentation: its segment (None in a label map) and the image it was drawn on."""

    index: int
    segment: int | None
    source: ImageReference | None
    several: bool = False


@dataclass(frozen=True, eq=False)
class _Part:
    """One connected component: where its bounding box begins and the mask in it."""

    image_uid: str
    frame: int
    row: int
    column: int
    mask: np.ndarray
    pixels: int

    def touches(self, other: _Part) -> bool:
        """Whether the two cover a common pixel."""
        top, left = max(self.row, other.row), max(self.column, other.column)
        bottom = min(self.row + self.mask.shape[0], other.row + other.mask.shape[0])
        right = min(self.column + self.mask.shape[1], other.column + other.mask.shape[1])
        if bottom <= top or right <= left:
            return False
        mine, others = (
            part.mask[top - part.row : bottom - part.row, left - part.column : right - part.column]
            for part in (self, other)
        )
        return bool((mine & others).any())


def is_segmentation(dataset: Dataset) -> bool:
    return dataset.get("SOPClassUID") in SEGMENTATION_CLASSES


def source_images(dataset: Dataset) -> tuple[str, ...]:
    """The SOP Instance UIDs of the images that a SEG was drawn on, in order; works without Pixel Data.

    Each frame's own source, else the one image of the referenced series.

    Raises:
        LesionError: the SEG names no image.
    """
    sources = [frame.source for frame in _frames(dataset) if frame.source is not None]
    if not sources:
        raise LesionError(
            "the segmentation names no source image: expected a Source Image Sequence for each frame, or exactly one "
            "instance in the Referenced Series Sequence"
        )
    return tuple(dict.fromkeys(source.sop_instance_uid for source in sources))


def read_segments(
    dataset: Dataset,
    images: Mapping[str, Dataset],
    not_lesions: Collection[str],
    collected: Collected,
    *,
    only: Collection[int] = (),
    on_frames: Collection[int] = (),
) -> None:
    """Add the lesions of a SEG to `collected`: one per 8-connected component of each segment.

    Components that overlap from one frame of a multi-frame image to the next are one lesion, drawn on the frame where
    it is largest. `only` names the segments and `on_frames` the SEG's frames (from 1) to read; empty means all.

    Raises:
        LesionError: the SEG itself is unusable (no segments, unknown type, no pixel data).
    """
    labelmap, threshold = _kind(dataset)
    described = _described(dataset)
    if labelmap:
        described.pop(_background(dataset), None)
    wanted = _wanted_segments(described, not_lesions, collected, only)
    parts: dict[int, list[_Part]] = {number: [] for number in wanted}
    failed = set()
    for frame in _frames(dataset):
        if on_frames and frame.index + 1 not in on_frames:
            continue
        if not labelmap and frame.segment not in described:
            collected.fail(f"frame {frame.index + 1}", LesionError("it names no segment of the Segment Sequence"))
        present = list(wanted) if labelmap else [frame.segment] if frame.segment in wanted else []
        if not present:
            continue
        if sum(map(len, parts.values())) > MAX_PARTS_OF_ALL:
            raise LesionError(
                f"the segmentation has more than {MAX_PARTS_OF_ALL} separate parts: noise, not marked lesions"
            )
        try:
            place = _place(dataset, frame, images)
            pixels = _decode(dataset, frame.index)
        except LesionError as error:
            failed.update(present)
            for segment in present:
                collected.fail(f"segment {segment}", error)
            continue
        if labelmap:
            present = sorted(set(np.unique(pixels).tolist()).intersection(present))
        for segment in present:
            try:
                parts[segment] += _components(pixels == segment if labelmap else pixels >= threshold, *place)
            except LesionError as error:
                failed.add(segment)
                collected.fail(f"segment {segment}", error)
        if labelmap:
            _note_unknown_labels(pixels, {_background(dataset), *described}, collected)
    for segment, item in wanted.items():
        if parts[segment]:
            _add_lesions(dataset, segment, item, parts[segment], collected)
        elif segment not in failed:
            collected.leave_out(f"segment {segment}", "no pixel is marked")


def _kind(dataset: Dataset) -> tuple[bool, float]:
    """Whether it is a label map, and from which stored value on a pixel belongs to a BINARY or FRACTIONAL segment."""
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
    """The stored value of a label map that means no segment (PS3.3 C.8.20.2)."""
    return int(dataset.get("PixelPaddingValue") or 0)


def _wanted_segments(
    described: Mapping[int, Dataset], not_lesions: Collection[str], collected: Collected, only: Collection[int]
) -> dict[int, Dataset]:
    for number in only:
        if number not in described:
            collected.fail(f"segment {number}", LesionError("the segmentation has no such segment"))
    wanted = {}
    for number, item in described.items():
        if only and number not in only:
            continue
        code = is_not_a_lesion(_codes(item), not_lesions)
        if code:
            collected.leave_out(f"segment {number}", f"its code {code.scheme}:{code.value} is listed as not a lesion")
        else:
            wanted[number] = item
    return wanted


def _codes(segment: Dataset) -> tuple[Code, ...]:
    keywords = ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence")
    return tuple(code for keyword in keywords if (code := code_of(segment, keyword)))


def _frames(dataset: Dataset) -> list[_Frame]:
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    only_image = _only_referenced_image(dataset)
    frames = []
    for index, group in enumerate(items(dataset, "PerFrameFunctionalGroupsSequence")):
        identification = items(group, "SegmentIdentificationSequence") or items(shared, "SegmentIdentificationSequence")
        segment = numbers(identification[0], "ReferencedSegmentNumber") if identification else ()
        sources = _derivation_sources(group) or _derivation_sources(shared)
        several = len({source.sop_instance_uid for source in sources}) > 1
        source = sources[0] if sources else only_image
        frames.append(_Frame(index, segment[0] if segment else None, source, several))
    return frames


def _derivation_sources(group: Dataset) -> list[ImageReference]:
    return [
        reference
        for derivation in items(group, "DerivationImageSequence")
        for source in items(derivation, "SourceImageSequence")
        if (reference := image_reference(source))
    ]


def _only_referenced_image(dataset: Dataset) -> ImageReference | None:
    """The image of the Referenced Series Sequence where it names just one; with more, whose a frame is were a guess."""
    references = {
        reference.sop_instance_uid: reference
        for series in items(dataset, "ReferencedSeriesSequence")
        for instance in items(series, "ReferencedInstanceSequence")
        if (reference := image_reference(instance))
    }
    return next(iter(references.values())) if len(references) == 1 else None


def _place(dataset: Dataset, frame: _Frame, images: Mapping[str, Dataset]) -> tuple[str, int]:
    """The SOP Instance UID of the image and the frame of it (from 1) that a frame of the segmentation was drawn on."""
    if frame.source is None:
        raise LesionError(f"frame {frame.index + 1} names no source image")
    if frame.several:
        raise LesionError(f"frame {frame.index + 1} names several source images; expected the one it was drawn on")
    image, number = image_frame(frame.source, images)
    own, expected = size(dataset), size(image)
    if own != expected:
        raise LesionError(
            f"the segmentation has {own[0]} rows x {own[1]} columns and its source image {expected[0]} rows x "
            f"{expected[1]} columns; expected the same pixel grid"
        )
    return frame.source.sop_instance_uid, number


def _decode(dataset: Dataset, index: int) -> np.ndarray:
    """The stored values (rows, columns) of one frame."""
    if "PixelData" not in dataset:
        raise LesionError("the segmentation has no Pixel Data")
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        if dataset.BitsAllocated == 1 and not syntax.is_encapsulated:
            return _unpack(dataset, index)
        return pixel_array(dataset, index=index, decoding_plugin=_DECODERS.get(syntax, ""))
    except LesionError:
        raise
    except Exception as error:  # decoders raise whatever they like at damaged data
        raise LesionError(
            f"frame {index + 1} of the segmentation cannot be decoded ({type(error).__name__})"
        ) from error


def _unpack(dataset: Dataset, index: int) -> np.ndarray:
    """One frame of bit-packed pixels: frames follow each other without padding, lowest bit first (PS3.5 8.1.1)."""
    rows, columns = size(dataset)
    begin, end = index * rows * columns, (index + 1) * rows * columns
    packed = np.frombuffer(dataset.PixelData, np.uint8)[begin // 8 : -(-end // 8)]
    bits = np.unpackbits(packed, bitorder="little")[begin % 8 :][: rows * columns]
    if bits.size != rows * columns:
        raise LesionError(f"the Pixel Data end before frame {index + 1} of the segmentation")
    return bits.reshape(rows, columns)


def _components(mask: np.ndarray, image_uid: str, frame: int) -> list[_Part]:
    labels, count = ndimage.label(mask, _EIGHT_CONNECTED)
    if count > MAX_PARTS:
        raise LesionError(f"{count} separate parts on one frame, more than {MAX_PARTS}: noise, not marked lesions")
    parts = []
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[where] == label
        parts.append(_Part(image_uid, frame, where[0].start, where[1].start, part, int(part.sum())))
    return parts


def _note_unknown_labels(pixels: np.ndarray, known: Collection[int], collected: Collected) -> None:
    for value in np.unique(pixels):
        if value not in known:
            collected.leave_out(f"label {value}", "the Segment Sequence does not describe it")


def _add_lesions(dataset: Dataset, segment: int, item: Dataset, parts: list[_Part], collected: Collected) -> None:
    largest = max(part.pixels for part in parts)
    specks = [part for part in parts if part.pixels < SPECK_PIXELS and part.pixels < SPECK_SHARE * largest]
    for speck in specks:
        collected.leave_out(
            f"segment {segment}, {speck.pixels} pixels at row {speck.row}, column {speck.column}",
            f"a stray speck beside a part of {largest} pixels",
        )
    lesions = _through_frames([part for part in parts if part not in specks])
    for number, lesion in enumerate(lesions, start=1):
        shown = max(lesion, key=lambda part: part.pixels)
        if len(lesion) > 1:
            collected.leave_out(
                f"segment {segment}, {len(lesion) - 1} more frames of one lesion",
                f"it is shown on frame {shown.frame}, where it is largest",
            )
        collected.add(_lesion(dataset, item, shown, number if len(lesions) > 1 else None))


def _through_frames(parts: list[_Part]) -> list[list[_Part]]:
    """Group parts that overlap from one frame of an image to the next; in order of each group's first part."""
    group_of = {id(part): [part] for part in parts}
    on_frame: dict[tuple[str, int], list[_Part]] = {}
    for part in parts:
        on_frame.setdefault((part.image_uid, part.frame), []).append(part)
    for (image_uid, frame), here in on_frame.items():
        for part, other in product(here, on_frame.get((image_uid, frame + 1), ())):
            mine, others = group_of[id(part)], group_of[id(other)]
            if mine is not others and part.touches(other):
                mine += others
                group_of.update((id(moved), mine) for moved in others)
    return list({id(group): group for group in (group_of[id(part)] for part in parts)}.values())


def _lesion(dataset: Dataset, segment: Dataset, part: _Part, number: int | None) -> Lesion:
    """`number` counts the lesions of one segment: its Tracking UID cannot name each of them."""
    outline = outline_of_mask(part.mask) + np.array([part.column, part.row])
    name = str(segment.get("TrackingID") or segment.get("SegmentLabel") or "") or None
    codes = _codes(segment)
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
        labels=codes,
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
