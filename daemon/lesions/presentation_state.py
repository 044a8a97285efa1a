"""Presentation states (grayscale, colour): closed shapes and points drawn on an image (PS3.3 C.10.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from daemon.errors import LesionError
from daemon.lesions.marks import Mark, Shape
from daemon.lesions.references import ImageReference, image_reference, items, numbers, uid_of
from daemon.lesions.sr_tree import Description

Points = tuple[tuple[float, float], ...]
_NO_LESION_GRAPHICS = ("INFINITELINE", "CUTLINE", "RANGELINE", "RULER", "AXIS", "CROSSHAIR")
_SHAPES = {
    "POINT": "POINT",
    "POLYLINE": "POLYLINE",
    "INTERPOLATED": "POLYLINE",
    "CIRCLE": "CIRCLE",
    "ELLIPSE": "ELLIPSE",
}
_LINE = "an open line encloses no area: a ruler or a pointer, and no lesion"


@dataclass(frozen=True)
class _Graphic:
    """A graphic object or compound graphic as it is written; `units` is PIXEL, DISPLAY or MATRIX."""

    where: str
    item: Dataset
    kind: str
    units: str
    points: Points
    is_compound: bool


def presentation_marks(state: Dataset) -> list[Mark]:
    """Return a mark for each closed shape and point that a presentation state draws on one image.

    The text anchored nearest to a shape is its label. Lines, rulers and axes are left out, with the reason; a
    state without other graphics gives no marks. Shutters and overlays are not read.

    Raises:
        LesionError: no graphic of the state can be assigned to an image.
    """
    shown = _referenced_images(state)
    marks = []
    for number, annotation in enumerate(items(state, "GraphicAnnotationSequence"), start=1):
        layer = str(annotation.get("GraphicLayer") or "")
        where = f"annotation {number}" + (f" of layer {layer}" if layer.isalnum() else "")
        named = [each for item in items(annotation, "ReferencedImageSequence") if (each := image_reference(item))]
        graphics = list(_graphics(annotation, where))
        labels = _labels(annotation, graphics)
        marks += [_mark(graphic, words, named or shown, state) for graphic, words in zip(graphics, labels, strict=True)]
    return marks if any(not mark.left_out for mark in marks) else []


def _referenced_images(state: Dataset) -> list[ImageReference]:
    holders = [state, *items(state, "BlendingSequence")]
    return [
        reference
        for holder in holders
        for series in items(holder, "ReferencedSeriesSequence")
        for item in items(series, "ReferencedImageSequence")
        if (reference := image_reference(item))
    ]


def _graphics(annotation: Dataset, where: str) -> Iterator[_Graphic]:
    """Yield an annotation's graphics, without graphic objects that repeat a compound graphic."""
    compounds = items(annotation, "CompoundGraphicSequence")
    instances = {numbers(item, "CompoundGraphicInstanceID") for item in compounds} - {()}
    for number, item in enumerate(items(annotation, "GraphicObjectSequence"), start=1):
        if numbers(item, "CompoundGraphicInstanceID") not in instances:
            kind, units = str(item.get("GraphicType") or ""), str(item.get("GraphicAnnotationUnits") or "")
            yield _Graphic(f"graphic {number} of {where}", item, kind, units, _points(item), False)
    for number, item in enumerate(compounds, start=1):
        kind, units = str(item.get("CompoundGraphicType") or ""), str(item.get("CompoundGraphicUnits") or "")
        yield _Graphic(f"compound graphic {number} of {where}", item, kind, units, _points(item), True)


def _points(item: Dataset) -> Points:
    data = item.get("GraphicData")
    values = (
        [] if data is None else [float(data)] if isinstance(data, (int, float)) else [float(value) for value in data]
    )
    return tuple(zip(values[::2], values[1::2], strict=False))


def _labels(annotation: Dataset, graphics: Sequence[_Graphic]) -> list[tuple[str, ...]]:
    """Return each graphic's texts: those anchored nearer to it than to any other."""
    labels: list[list[str]] = [[] for _ in graphics]
    for text in items(annotation, "TextObjectSequence"):
        words, anchor = str(text.get("UnformattedTextValue") or ""), text.get("AnchorPoint")
        units = text.get("AnchorPointAnnotationUnits")
        near = {
            index: np.hypot(*(np.array(graphic.points) - np.array(anchor, float)).T).min()
            for index, graphic in enumerate(graphics)
            if graphic.points and anchor is not None and len(anchor) == 2 and graphic.units == units
        }
        if words and (near or len(graphics) == 1):
            labels[min(near, key=near.__getitem__) if near else 0].append(words)
    return [tuple(words) for words in labels]


def _mark(graphic: _Graphic, words: tuple[str, ...], images: Sequence[ImageReference], state: Dataset) -> Mark:
    tracking = str(graphic.item.get("TrackingID") or "") or None
    said = Description(tracking_id=tracking, tracking_uid=uid_of(graphic.item, "TrackingUID"), texts=words)
    if reason := _why_no_lesion(graphic):
        return Mark(graphic.where, said, left_out=reason)
    image = images[0] if len({reference.sop_instance_uid for reference in images}) == 1 else None
    try:
        if image is None:
            raise LesionError("it names no image, or several, to lie on")
        points = _in_pixels(graphic, image, state)
        kind, points = _as_region(graphic, points)
    except LesionError as error:
        return Mark(graphic.where, said, unusable=str(error))
    data = tuple(value for point in points for value in point)
    return Mark(graphic.where, said, shapes=(Shape(kind, data, image),))


def _why_no_lesion(graphic: _Graphic) -> str | None:
    if graphic.kind in _NO_LESION_GRAPHICS:
        return f"a {graphic.kind} measures or points, and marks no lesion"
    if graphic.kind == "ARROW":
        return "of a compound ARROW it is not told which end is the tip; draw the lesion's outline or a point"
    if graphic.kind in ("POLYLINE", "INTERPOLATED", "MULTILINE"):
        is_filled = graphic.item.get("GraphicFilled") == "Y"
        if len(graphic.points) < 3 or (graphic.points[0] != graphic.points[-1] and not is_filled):
            return _LINE
    return None


def _as_region(graphic: _Graphic, points: Points) -> tuple[str, Points]:
    """Return graphic type and points of the equivalent SCOORD."""
    if not graphic.is_compound:
        if graphic.kind not in _SHAPES:
            raise LesionError(f"graphic type {graphic.kind!r} is none of {', '.join(_SHAPES)}")
        is_open = graphic.kind in ("POLYLINE", "INTERPOLATED") and points[0] != points[-1]
        return _SHAPES[graphic.kind], (*points, points[0]) if is_open else points
    if graphic.item.get("RotationAngle"):
        raise LesionError("a rotated compound graphic is not read")
    if graphic.kind == "MULTILINE":
        return "POLYLINE", points
    if graphic.kind not in ("RECTANGLE", "ELLIPSE") or len(points) != 2:
        raise LesionError(f"a compound graphic {graphic.kind!r} of {len(points)} points is not read")
    (left, top), (right, bottom) = points
    if graphic.kind == "RECTANGLE":
        return "POLYLINE", ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    column, row = (left + right) / 2, (top + bottom) / 2
    axes = [((left, row), (right, row)), ((column, top), (column, bottom))]
    if abs(bottom - top) > abs(right - left):
        axes.reverse()
    return "ELLIPSE", (*axes[0], *axes[1])


def _in_pixels(graphic: _Graphic, image: ImageReference, state: Dataset) -> Points:
    """Return points of (column, row) in image pixels, (0, 0) the corner of the first pixel as in a SCOORD.

    DISPLAY units are fractions of the displayed area, whose corners are pixels counted from 1 (PS3.3 C.10.4).
    """
    if not graphic.points:
        raise LesionError("it has no points")
    if graphic.units == "PIXEL":
        return graphic.points
    if graphic.units != "DISPLAY":
        raise LesionError(f"its units are {graphic.units!r}; expected PIXEL or DISPLAY")
    if state.get("ImageRotation") or state.get("ImageHorizontalFlip") == "Y":
        raise LesionError("it is drawn on the display of a rotated or flipped image; expected units of PIXEL")
    area = _displayed_area(image, state)
    corners = [numbers(area, f"DisplayedArea{corner}HandCorner") for corner in ("TopLeft", "BottomRight")]
    if any(len(corner) != 2 for corner in corners) or not (corners[0] < corners[1] and corners[0][1] < corners[1][1]):
        raise LesionError("it is drawn on the display, and the displayed area has no corners to tell where")
    (left, top), (right, bottom) = (corners[0][0] - 1, corners[0][1] - 1), corners[1]
    return tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in graphic.points)


def _displayed_area(image: ImageReference, state: Dataset) -> Dataset:
    areas = items(state, "DisplayedAreaSelectionSequence")
    for area in areas:
        named = {uid_of(item, "ReferencedSOPInstanceUID") for item in items(area, "ReferencedImageSequence")}
        if image.sop_instance_uid in named or (not named and len(areas) == 1):
            return area
    raise LesionError("it is drawn on the display, and no displayed area is given for its image")
