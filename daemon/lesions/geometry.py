"""Geometry in image pixels: outlines of SR regions and of SEG masks.

Coordinates are (column, row), DICOM SCOORD convention: (0, 0) is the top-left corner of the top-left
pixel and pixel centres lie at +0.5 (PS3.3 C.18.6.1.2).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import contourpy
import numpy as np

from daemon.errors import LesionError
from daemon.lesions.lesion import Region

MAX_POINTS = 100_000  # of one graphic; what a reader draws has hundreds
REGION_POINTS = 1000  # of one region in a report; explicit VR cannot hold more than 8,191
THINNING_TOLERANCE = 0.25  # pixels
OUTSIDE_TOLERANCE = 1.0  # pixels; viewers differ by up to one in where an image begins and ends
_CURVE_ERROR = 0.05  # pixels between a curve and the polygon that stands for it
_POINTS_NEEDED = {"POINT": 1, "MULTIPOINT": 1, "POLYLINE": 2, "CIRCLE": 2, "ELLIPSE": 4}


def region_of(graphic_type: str, graphic_data: Sequence[float] | None) -> Region:
    """Return the region of Graphic Type and Graphic Data (PS3.3 C.18.6.1), checked.

    Some viewers write an arrow as a POINT with two points: the first, its tip, is used.

    Raises:
        LesionError: unknown type, wrong number of values, too many, a value that is not finite, no extent.
    """
    if graphic_type not in _POINTS_NEEDED:
        raise LesionError(f"graphic type {graphic_type!r} is none of {', '.join(_POINTS_NEEDED)}")
    data = () if graphic_data is None else graphic_data
    if len(data) > 2 * MAX_POINTS:
        raise LesionError(f"{graphic_type} of {len(data) // 2} points; at most {MAX_POINTS} are read")
    if len(data) % 2:
        raise LesionError(f"{graphic_type} has {len(data)} values; expected pairs of column and row")
    try:
        points = np.array(data, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise LesionError(f"{graphic_type} has values that are not numbers") from error
    needed = _POINTS_NEEDED[graphic_type]
    if len(points) < needed or (graphic_type in ("CIRCLE", "ELLIPSE") and len(points) != needed):
        raise LesionError(f"{graphic_type} has {len(points)} points; expected {needed}")
    if not np.isfinite(points).all():
        raise LesionError(f"{graphic_type} has a coordinate that is not finite")
    if graphic_type == "POINT":
        points = points[:1]
    if graphic_type in ("CIRCLE", "ELLIPSE") and not np.any(points[::2] != points[1::2], axis=1).all():
        raise LesionError(f"{graphic_type} without extent: its points coincide")
    return Region(graphic_type, points)


def check_inside(region: Region, rows: int, columns: int) -> None:
    """Check that a region's points (the centre of a circle or ellipse) are in the image.

    Raises:
        LesionError: a point is off by more than `OUTSIDE_TOLERANCE`; names the point and the image's size.
    """
    points = region.points
    if region.graphic_type == "CIRCLE":
        points = points[:1]
    elif region.graphic_type == "ELLIPSE":
        points = points[:2].mean(axis=0, keepdims=True)
    low, high = -OUTSIDE_TOLERANCE, np.array([columns, rows]) + OUTSIDE_TOLERANCE
    outside = points[((points < low) | (points > high)).any(axis=1)]
    if len(outside):
        column, row = outside[0]
        raise LesionError(
            f"{region.graphic_type} at column {column:g}, row {row:g} lies outside the image of {columns} columns and "
            f"{rows} rows"
        )


def outline_of_region(region: Region, rows: int, columns: int) -> np.ndarray:
    """Return a region's `polygon_of_region` (N, 2) float64, clipped to the image of `rows` x `columns`."""
    return np.clip(polygon_of_region(region), 0.0, [columns, rows])


def polygon_of_region(region: Region) -> np.ndarray:
    """Return a region's corners (N, 2) float64, also off the image; closed shapes do not repeat their first.

    CIRCLE and ELLIPSE become polygons that start at their first axis end; MULTIPOINT becomes its convex hull.
    """
    points = region.points
    if region.graphic_type == "CIRCLE":
        radius = points[1] - points[0]
        outline = _ellipse(points[0], radius, np.array([-radius[1], radius[0]]))
    elif region.graphic_type == "ELLIPSE":
        outline = _ellipse(points[:2].mean(axis=0), (points[0] - points[1]) / 2, (points[2] - points[3]) / 2)
    elif region.graphic_type == "MULTIPOINT":
        outline = convex_hull(points)
    elif is_closed(region):
        outline = points[:-1]
    else:
        outline = points
    return outline


def region_of_outline(outline: np.ndarray) -> Region:
    """Return an outline as a thinned region: closed POLYLINE, open for two points, POINT for one."""
    if len(outline) == 1:
        return Region("POINT", outline)
    if len(outline) == 2:
        return Region("POLYLINE", outline)
    return thinned(Region("POLYLINE", np.vstack([outline, outline[:1]])))


def is_closed(region: Region) -> bool:
    """Return whether the region encloses an area: a circle, an ellipse, or a closed polyline."""
    if region.graphic_type == "POLYLINE":
        return len(region.points) > 3 and bool((region.points[0] == region.points[-1]).all())
    return region.graphic_type in ("CIRCLE", "ELLIPSE")


def thinned(region: Region) -> Region:
    """Thin a POLYLINE of over `REGION_POINTS` points to `THINNING_TOLERANCE` (Douglas-Peucker).

    The most distant points are kept first; an outline too ragged keeps its `REGION_POINTS` best points.
    """
    if region.graphic_type != "POLYLINE" or len(region.points) <= REGION_POINTS:
        return region
    return Region("POLYLINE", _douglas_peucker(region.points, THINNING_TOLERANCE, REGION_POINTS))


def outline_of_mask(mask: np.ndarray) -> np.ndarray:
    """Return the outer outline (N, 2) float64 of a mask (rows, columns) of one 8-connected component.

    It passes through the middles of the boundary's pixel edges: straight edges lie on pixel borders, corners
    are cut by half a pixel, and exactly the centres of the mask's pixels (and holes) are inside.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.float64)
    padded[1:-1, 1:-1] = mask
    # Slightly under 0.5, so that pixels that touch by a corner are joined; rounding removes the difference.
    lines = contourpy.contour_generator(z=padded, name="serial", line_type=contourpy.LineType.Separate).lines(
        0.5 - 1e-6
    )
    outer = max((np.asarray(line) for line in lines), key=area)
    # contourpy counts pixel centres from 0, and the padding moved them by one.
    points = np.round(outer[:-1] * 2) / 2 - 0.5
    return _without_collinear(points)


def area(points: np.ndarray) -> float:
    """Return the area of a closed polygon (N, 2) in square pixels (shoelace formula)."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Return the convex hull's corners, counter-clockwise (monotone chain); 2 for a line, 1 for a point."""
    ordered = np.unique(points, axis=0)
    if len(ordered) < 3:
        return ordered

    def half(sequence: np.ndarray) -> list[np.ndarray]:
        chain: list[np.ndarray] = []
        for point in sequence:
            while len(chain) > 1 and _cross(chain[-1] - chain[-2], point - chain[-2]) <= 0:
                chain.pop()
            chain.append(point)
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def _ellipse(centre: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    radius = max(float(np.hypot(*first)), float(np.hypot(*second)))
    step = math.acos(max(1 - _CURVE_ERROR / radius, 0.5))  # 0 if the radius exceeds all images
    steps = math.pi / step if step else math.inf
    # a multiple of four: both ends of both axes are points of the polygon
    angles = np.linspace(0, 2 * np.pi, 4 * math.ceil(min(max(steps / 4, 4), 90)), endpoint=False)
    return centre + np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second


def _cross(first: np.ndarray, second: np.ndarray) -> float:
    return float(first[0] * second[1] - first[1] * second[0])


def _without_collinear(points: np.ndarray) -> np.ndarray:
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[corners]


def _douglas_peucker(points: np.ndarray, tolerance: float, most: int) -> np.ndarray:
    kept = [0, len(points) - 1]
    waiting = [_farthest(points, *kept)]
    while waiting and len(kept) < most:
        distance, first, middle, last = heapq.heappop(waiting)
        if -distance <= tolerance:
            break
        kept.append(middle)
        for span in ((first, middle), (middle, last)):
            if span[1] - span[0] > 1:
                heapq.heappush(waiting, _farthest(points, *span))
    return points[sorted(kept)]


def _farthest(points: np.ndarray, first: int, last: int) -> tuple[float, int, int, int]:
    """Return (-distance, first, index, last) of the point farthest from the segment first to last."""
    distances = _distance_to_segment(points[first + 1 : last], points[first], points[last])
    middle = int(distances.argmax())
    return -float(distances[middle]), first, first + 1 + middle, last


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1)[:, None] if length else np.zeros((len(points), 1))
    return np.hypot(*(points - start - share * along).T)
