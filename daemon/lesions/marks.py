"""`Mark`: one place that a report marks, before it meets its image; and how marks become lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.anatomy import why_no_lesion
from daemon.lesions.geometry import (
    MAX_POINTS,
    check_inside,
    convex_hull,
    is_closed,
    outline_of_region,
    polygon_of_region,
    region_of,
    region_of_outline,
    thinned,
)
from daemon.lesions.lesion import Code, Lesion, Region
from daemon.lesions.mammograms import why_no_mammogram
from daemon.lesions.plausibility import why_implausible
from daemon.lesions.references import (
    Collected,
    ImageReference,
    NotClassified,
    TooManyLesions,
    image_frame,
    numbered,
    size,
)
from daemon.lesions.seg import read_segments
from daemon.lesions.sr_tree import ContentItem, ContentTree, Description
from daemon.lesions.stacks import on_best_slices
from daemon.lesions.viewer_tools import is_arrow, why_no_lesion_tool

BYTES_EACH = 4  # Graphic Data is FL


@dataclass(frozen=True)
class Shape:
    """A SCOORD item and the image it is selected from (None if it names no image)."""

    graphic_type: str
    graphic_data: tuple[float, ...]
    reference: ImageReference | None


@dataclass(frozen=True)
class Mark:
    """One marked place of a report.

    `segments` (references to a SEG) are used only if there are no `shapes`. `one_place`: all shapes on an
    image are parts of one lesion. `region_names` are names of its regions, `below` its content items.
    `left_out` is why the report does not want it shown; `unusable` is why it cannot be read.
    """

    where: str
    description: Description
    shapes: tuple[Shape, ...] = ()
    segments: tuple[ImageReference, ...] = ()
    source_images: tuple[ImageReference, ...] = ()
    region_names: tuple[Code, ...] = ()
    below: tuple[ContentItem, ...] = ()
    one_place: bool = False
    left_out: str | None = None
    unusable: str | None = None

    @property
    def is_line(self) -> bool:
        """Whether the whole drawing is one straight line, such as a ruler, and no arrow."""
        lines = {shape.graphic_data for shape in self.shapes if shape.graphic_type == "POLYLINE"}
        return len(lines) == 1 == len({shape.graphic_data for shape in self.shapes}) and len(next(iter(lines))) == 4

    @property
    def image_uids(self) -> list[str]:
        """UIDs of the images needed to read the mark: its shapes' or its segments' source images."""
        references = (
            [shape.reference for shape in self.shapes if shape.reference] if self.shapes else self.source_images
        )
        return [reference.sop_instance_uid for reference in references]

    @property
    def segmentation_uids(self) -> list[str]:
        """UIDs of the SEG objects needed to read the mark."""
        return [] if self.shapes else [segment.sop_instance_uid for segment in self.segments]


def shape_of(tree: ContentTree, scoord: ContentItem) -> Shape:
    """Return the shape of a SCOORD item; too many points are not even decoded."""
    raw = scoord.item.get_item("GraphicData")
    if isinstance(raw, RawDataElement) and (raw.length or 0) > 2 * BYTES_EACH * MAX_POINTS:
        points = (raw.length or 0) // (2 * BYTES_EACH)
        raise LesionError(f"{scoord.where} has {points} points; at most {MAX_POINTS} are read")
    data = scoord.item.get("GraphicData")
    values = () if data is None else (data,) if isinstance(data, (int, float)) else tuple(data)
    return Shape(str(scoord.item.get("GraphicType") or ""), values, tree.image_of(scoord))


def read_mark(
    mark: Mark,
    source_uid: str,
    images: Mapping[str, Dataset],
    segmentations: Mapping[str, Dataset],
    settings: Lesions,
    collected: Collected,
) -> None:
    """Add the lesions of one mark, or the reason why there are none, to `collected`."""
    reason = mark.left_out or _why_no_lesion(mark, settings)
    if reason:
        collected.leave_out(mark.where, reason)
    elif mark.unusable:
        collected.fail(mark.where, LesionError(mark.unusable))
    else:
        lesions = (
            _from_shapes(mark, source_uid, images, settings, collected)
            if mark.shapes
            else _from_segments(mark, images, segmentations, settings, collected)
        )
        lesions = on_best_slices(lesions, images, mark.where, collected)
        for number, lesion in enumerate(lesions, start=1):
            collected.add(_told(lesion, mark, source_uid, number if len(lesions) > 1 else None))


def _why_no_lesion(mark: Mark, settings: Lesions) -> str | None:
    said = mark.description
    naming = replace(said.naming, types=said.types + mark.region_names)
    is_line = mark.is_line and not is_arrow(said.tracking_id)
    return why_no_lesion(naming, settings) or why_no_lesion_tool(said, mark.below, is_line, settings)


def _told(lesion: Lesion, mark: Mark, source_uid: str, number: int | None) -> Lesion:
    """Return a lesion described by the report's mark, which overrides its segment's own description.

    `number` counts the lesions of one mark: its Tracking UID cannot name each of them.
    """
    said = mark.description
    return replace(
        lesion,
        source_uid=source_uid,
        tracking_id=numbered(said.tracking_id, number) or lesion.tracking_id,
        tracking_uid=(said.tracking_uid if number is None else None) or lesion.tracking_uid,
        finding=said.finding or lesion.finding,
        finding_site=said.finding_site or lesion.finding_site,
        laterality=said.laterality or lesion.laterality,
        labels=tuple(dict.fromkeys(said.labels + lesion.labels)),
    )


def _from_shapes(
    mark: Mark, source_uid: str, images: Mapping[str, Dataset], settings: Lesions, collected: Collected
) -> list[Lesion]:
    places: dict[tuple[str, int], dict[tuple[str, bytes], Region]] = {}  # what is drawn twice counts once
    for shape in mark.shapes:
        try:
            region = _tip_or_region(shape, mark)
            if shape.reference is None:
                raise LesionError("the region names no image, or several, to lie on")
            image, frame = image_frame(shape.reference, images)
            if reason := why_no_mammogram(image, settings.image_classes):
                raise NotClassified(f"image {shape.reference.sop_instance_uid}: {reason}")
            check_inside(region, *size(image))
            polygon, least = polygon_of_region(region), settings.min_area_px
            if reason := why_implausible(region, polygon, image, settings, min_area_px=least):
                raise NotClassified(reason)
        except LesionError as error:
            collected.fail(mark.where, error)
            continue
        if len(shape.reference.frames) > 1:
            collected.leave_out(mark.where, f"of the frames it names the middle one, {frame}, is taken")
        regions = places.setdefault((shape.reference.sop_instance_uid, frame), {})
        regions.setdefault((region.graphic_type, region.points.tobytes()), region)
    return [
        Lesion(source_uid, image_uid, frame, outline, region)
        for (image_uid, frame), regions in places.items()
        for region, outline in _drawn(list(regions.values()), size(images[image_uid]), mark.one_place)
    ]


def _tip_or_region(shape: Shape, mark: Mark) -> Region:
    """Return the region of a shape; for an arrow its tip, which is written first."""
    region = region_of(shape.graphic_type, shape.graphic_data)
    return Region("POINT", region.points[:1]) if is_arrow(mark.description.tracking_id) else region


def _drawn(regions: list[Region], image_size: tuple[int, int], one_place: bool) -> list[tuple[Region, np.ndarray]]:
    """Return the lesions drawn on a frame: each closed region, else the hull of all lines and points."""
    closed = [region for region in regions if is_closed(region)]
    if closed and not one_place:
        regions = closed
    if len(regions) == 1 or (closed and not one_place):
        outlines = [outline_of_region(region, *image_size) for region in regions]
        return [(_drawable(*pair), pair[1]) for pair in zip(regions, outlines, strict=True)]
    hull = convex_hull(np.vstack([outline_of_region(region, *image_size) for region in regions]))
    return [(region_of_outline(hull), hull)]


def _drawable(region: Region, outline: np.ndarray) -> Region:
    """Return the region, or its outline if a report cannot show the region.

    TID 1410 forbids a MULTIPOINT, and OHIF does not show a tilted ellipse.
    """
    tilted = region.graphic_type == "ELLIPSE" and bool(np.ptp(region.points[:2], axis=0).all())
    return region_of_outline(outline) if tilted or region.graphic_type == "MULTIPOINT" else thinned(region)


def _from_segments(
    mark: Mark,
    images: Mapping[str, Dataset],
    segmentations: Mapping[str, Dataset],
    settings: Lesions,
    collected: Collected,
) -> list[Lesion]:
    own = Collected(collected.max_lesions)
    for reference in mark.segments:
        segmentation = segmentations.get(reference.sop_instance_uid)
        try:
            if segmentation is None:
                raise LesionError(f"segmentation {reference.sop_instance_uid} is not here")
            read_segments(segmentation, images, settings, own, only=reference.segments, on_frames=reference.frames)
        except TooManyLesions:
            raise
        except LesionError as error:
            collected.fail(mark.where, error)
    for failure in own.failures:
        collected.fail(f"{mark.where}, {failure.what}", LesionError(failure.reason))
    for left_out in own.left_out:
        if left_out not in own.failures:
            collected.leave_out(f"{mark.where}, {left_out.what}", left_out.reason)
    return own.lesions
