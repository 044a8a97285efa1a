"""Geometry: masks and SR graphics become outlines in SCOORD coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from daemon.errors import LesionError
from daemon.lesions.geometry import (
    MAX_POINTS,
    REGION_POINTS,
    area,
    check_inside,
    convex_hull,
    outline_of_mask,
    outline_of_region,
    region_of,
    region_of_outline,
    thinned,
)
from daemon.lesions.lesion import Region


def box(points: np.ndarray) -> tuple[float, float, float, float]:
    return (*points.min(axis=0), *points.max(axis=0))


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Crossing number, one point at a time: independent of how the outline was made."""
    result = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            result ^= crosses & (points[:, 0] < (x1 - x0) * (points[:, 1] - y0) / (y1 - y0) + x0)
    return result


def pixel_centres(shape: tuple[int, int]) -> np.ndarray:
    row, column = np.mgrid[: shape[0], : shape[1]]
    return np.stack([column.ravel() + 0.5, row.ravel() + 0.5], axis=1)


def test_a_rectangle_of_pixels_is_bounded_by_its_pixel_borders() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:11, 7:20] = True
    outline = outline_of_mask(mask)
    assert box(outline) == (7, 5, 20, 11)
    # four corners, each cut from edge middle to edge middle: 6 x 13 pixels less 4 triangles of 1/8
    assert area(outline) == 6 * 13 - 0.5
    assert len(outline) == 8


def test_one_pixel_is_the_diamond_through_its_edge_middles() -> None:
    outline = outline_of_mask(np.ones((1, 1), bool))
    assert {tuple(point) for point in outline} == {(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)}


def test_pixels_that_touch_by_a_corner_have_one_outline() -> None:
    outline = outline_of_mask(np.eye(3, dtype=bool))
    assert box(outline) == (0, 0, 3, 3)


def test_a_hole_does_not_shrink_the_outline() -> None:
    mask = np.ones((9, 9), bool)
    mask[1:8, 1:8] = False
    assert box(outline_of_mask(mask)) == (0, 0, 9, 9)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans()))
def test_an_outline_drawn_again_gives_the_mask(noise: np.ndarray) -> None:
    labels, count = ndimage.label(noise, np.ones((3, 3)))
    for label in range(1, count + 1):
        mask = labels == label
        outline = outline_of_mask(mask)
        rows, columns = np.nonzero(mask)
        assert box(outline) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # the outer outline holds the component and whatever it encloses by touching corners: nothing else
        filled = ~flooded_from_outside(mask)
        assert np.array_equal(inside(outline, pixel_centres(mask.shape)).reshape(mask.shape), filled)


def flooded_from_outside(mask: np.ndarray) -> np.ndarray:
    """Return the background that reaches the border through pixel edges (4-connected)."""
    background, _ = ndimage.label(~np.pad(mask, 1))
    return (background == background[0, 0])[1:-1, 1:-1]


@settings(max_examples=40, deadline=None)
@given(st.floats(5, 195), st.floats(5, 95), st.floats(0.5, 300), st.floats(0, 2 * math.pi))
def test_a_circle_stays_at_its_radius(x: float, y: float, radius: float, angle: float) -> None:
    region = region_of("CIRCLE", [x, y, x + radius * math.cos(angle), y + radius * math.sin(angle)])
    outline = outline_of_region(_moved(region, 5000), 10_000, 10_000)
    distance = np.hypot(*(outline - [x + 5000, y + 5000]).T)
    assert distance == pytest.approx(radius, abs=1e-6)
    assert area(outline) == pytest.approx(math.pi * radius**2, rel=0.12 / radius + 1e-3)
    # every chord stays within a twentieth of a pixel of the circle
    middles = (outline + np.roll(outline, -1, axis=0)) / 2
    assert radius - np.hypot(*(middles - [x + 5000, y + 5000]).T).min() < 0.06


def _moved(region: Region, by: float) -> Region:
    return Region(region.graphic_type, region.points + by)


@settings(max_examples=40, deadline=None)
@given(st.floats(2, 200), st.floats(2, 200), st.floats(0, math.pi))
def test_an_ellipse_satisfies_its_equation(major: float, minor: float, angle: float) -> None:
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    centre = np.array([500.0, 400.0])
    ends = [centre - major * along, centre + major * along, centre - minor * across, centre + minor * across]
    region = region_of("ELLIPSE", np.concatenate(ends).tolist())
    outline = outline_of_region(region, 1000, 1000)
    u, v = (outline - centre) @ along / major, (outline - centre) @ across / minor
    assert u**2 + v**2 == pytest.approx(1, abs=1e-9)
    for end in ends:
        assert np.hypot(*(outline - end).T).min() < 1e-6


def test_a_circle_is_clipped_to_the_image_and_its_region_kept() -> None:
    region = region_of("CIRCLE", [2, 50, 12, 50])
    assert box(outline_of_region(region, 100, 80)) == (0, 40, 12, 60)
    assert region.points.tolist() == [[2, 50], [12, 50]]


@pytest.mark.parametrize(
    ("graphic_type", "data", "expected"),
    [
        ("POINT", [3.5, 4.5], [[3.5, 4.5]]),
        ("POINT", [3.5, 4.5, 20, 30], [[3.5, 4.5]]),  # an arrow: tip and tail
        ("POLYLINE", [1, 1, 5, 1, 5, 5, 1, 1], [[1, 1], [5, 1], [5, 5]]),
        ("POLYLINE", [1, 1, 5, 1, 5, 5], [[1, 1], [5, 1], [5, 5]]),
        ("MULTIPOINT", [1, 1, 9, 1, 5, 3, 9, 9, 1, 9], [[1, 1], [9, 1], [9, 9], [1, 9]]),
        ("MULTIPOINT", [1, 1, 3, 3, 2, 2], [[1, 1], [3, 3]]),
        ("MULTIPOINT", [4, 5], [[4, 5]]),
    ],
)
def test_graphics_made_of_their_own_points(graphic_type: str, data: list[float], expected: list[list[float]]) -> None:
    assert outline_of_region(region_of(graphic_type, data), 50, 50).tolist() == expected


@pytest.mark.parametrize(
    ("graphic_type", "data", "reason"),
    [
        ("POLYGON", [1, 1, 2, 2], "graphic type 'POLYGON' is none of"),
        ("POLYLINE", [1, 1, 2], "3 values; expected pairs"),
        ("POLYLINE", None, "0 points; expected 2"),
        ("POINT", [], "0 points; expected 1"),
        ("CIRCLE", [1, 1, 2, 2, 3, 3], "3 points; expected 2"),
        ("ELLIPSE", [1, 1, 2, 2], "2 points; expected 4"),
        ("POINT", [float("nan"), 1], "not finite"),
        ("POLYLINE", [1, 1, float("inf"), 1], "not finite"),
        ("POINT", ["a", "b"], "not numbers"),
        ("CIRCLE", [4, 4, 4, 4], "without extent"),
        ("ELLIPSE", [1, 4, 9, 4, 5, 4, 5, 4], "without extent"),
        ("MULTIPOINT", [1.0] * (2 * MAX_POINTS + 2), f"at most {MAX_POINTS}"),
    ],
)
def test_graphics_that_are_refused(graphic_type: str, data: list[float] | None, reason: str) -> None:
    with pytest.raises(LesionError, match=reason):
        region_of(graphic_type, data)


@pytest.mark.parametrize(
    ("graphic_type", "data", "fits"),
    [
        ("POLYLINE", [-0.9, 0, 80.9, 100.9], True),
        ("POLYLINE", [0, 0, 81.1, 50], False),
        ("POLYLINE", [0, 0, 50, 101.1], False),
        ("POINT", [-1.1, 5], False),
        ("CIRCLE", [5, 5, 60, 5], True),
        ("CIRCLE", [-2, 5, 60, 5], False),
        ("ELLIPSE", [-10, 50, 30, 50, 10, 40, 10, 60], True),
        ("ELLIPSE", [70, 50, 110, 50, 90, 40, 90, 60], False),
    ],
)
def test_regions_must_lie_in_the_image(graphic_type: str, data: list[float], fits: bool) -> None:
    region = region_of(graphic_type, data)
    if fits:
        check_inside(region, 100, 80)
    else:
        with pytest.raises(LesionError, match="outside the image of 80 columns and 100 rows"):
            check_inside(region, 100, 80)


def test_a_long_outline_is_thinned_within_a_quarter_pixel() -> None:
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = 1000 + 900 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    region = region_of_outline(circle)
    assert len(region.points) <= REGION_POINTS
    assert (region.points[0] == region.points[-1]).all()
    middles = (region.points[1:] + region.points[:-1]) / 2
    assert abs(np.hypot(*(middles - 1000).T) - 900).max() <= 0.26


def test_an_outline_that_cannot_be_thinned_finely_still_fits_a_report() -> None:
    rng = np.random.default_rng(0)
    ragged = Region("POLYLINE", rng.uniform(0, 1000, (4000, 2)))
    assert len(thinned(ragged).points) == REGION_POINTS


def test_short_outlines_are_drawn_as_they_are() -> None:
    square = np.array([[1.0, 1], [5, 1], [5, 5], [1, 5]])
    assert region_of_outline(square).points.tolist() == [[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]
    assert region_of_outline(square[:1]).graphic_type == "POINT"
    assert region_of_outline(square[:2]).points.tolist() == [[1, 1], [5, 1]]


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(3, 30), st.just(2)), elements=st.integers(0, 40).map(float)))
def test_a_hull_holds_all_points_and_turns_one_way(points: np.ndarray) -> None:
    hull = convex_hull(points)
    assert {tuple(corner) for corner in hull} <= {tuple(point) for point in points}
    if len(hull) < 3:
        return
    edges = np.roll(hull, -1, axis=0) - hull
    for corner, edge in zip(hull, edges, strict=True):
        offsets = points - corner
        assert (edge[0] * offsets[:, 1] - edge[1] * offsets[:, 0] >= 0).all()


def test_an_outline_agrees_with_a_drawing_program() -> None:
    """Pillow draws a polygon; its outline must surround exactly the pixels that Pillow filled."""
    drawing = Image.new("1", (120, 90))
    ImageDraw.Draw(drawing).polygon([(10, 20), (100, 8), (90, 70), (50, 40), (20, 80)], fill=1)
    mask = np.array(drawing)
    assert np.array_equal(inside(outline_of_mask(mask), pixel_centres(mask.shape)).reshape(mask.shape), mask)
