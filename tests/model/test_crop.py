"""ROI geometry: where the box lies, what is padding, and that resampling keeps places and averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from pydicom import Dataset

from model.crop import CropPolicy, cut_roi, image_spacing, lesion_box
from model.errors import ImageError
from tests.support.bundles import square

PAPER = CropPolicy()
SMALL = 64

spacings = st.tuples(st.floats(0.04, 0.9), st.floats(0.04, 0.9))
policies = st.one_of(
    st.builds(lambda side, size: CropPolicy(side_px=side, size=size), st.integers(20, 90), st.just(SMALL)),
    st.builds(lambda side: CropPolicy(kind="millimetres", side_mm=side, size=SMALL), st.floats(3, 25)),
    st.builds(
        lambda factor, least: CropPolicy(kind="lesion", factor=factor, minimum_mm=least, size=SMALL),
        st.floats(1, 4),
        st.floats(2, 20),
    ),
    st.builds(
        lambda factor, least: CropPolicy(kind="lesion", factor=factor, minimum_px=least, size=SMALL),
        st.floats(1, 4),
        st.floats(20, 60),
    ),
)
outlines = st.lists(st.tuples(st.floats(0, 120), st.floats(0, 90)), min_size=1, max_size=8).map(np.array)


@given(outline=outlines, policy=policies, spacing=spacings)
def test_the_box_is_centred_on_the_outline(
    outline: np.ndarray, policy: CropPolicy, spacing: tuple[float, float]
) -> None:
    box = lesion_box(outline, policy, spacing)
    centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
    off = np.abs(np.array([(box.left + box.right) / 2, (box.top + box.bottom) / 2]) - centre)
    assert (off <= (0.5 if policy.kind == "pixels" else 1e-6)).all()


@given(outline=outlines, policy=policies, spacing=spacings)
def test_the_box_is_square_on_the_film(outline: np.ndarray, policy: CropPolicy, spacing: tuple[float, float]) -> None:
    box = lesion_box(outline, policy, spacing)
    width, height = box.right - box.left, box.bottom - box.top
    if policy.kind == "pixels":
        assert width == height == policy.side_px
    else:
        assert width * spacing[1] == pytest.approx(height * spacing[0])
    if policy.kind == "millimetres":
        assert width * spacing[1] == pytest.approx(policy.side_mm)
    if policy.kind == "lesion":  # the whole lesion is in it
        assert box.left <= outline[:, 0].min() + 1e-6
        assert box.right >= outline[:, 0].max() - 1e-6
        assert box.top <= outline[:, 1].min() + 1e-6
        assert box.bottom >= outline[:, 1].max() - 1e-6


@given(outline=outlines, policy=policies, spacing=spacings)
@settings(max_examples=60)
def test_padding_is_the_share_outside_and_has_its_grey(
    outline: np.ndarray, policy: CropPolicy, spacing: tuple[float, float]
) -> None:
    # On a white image with black padding, the ROI's mean is the share of the box that lies inside.
    roi = cut_roi(np.ones((90, 120), np.float32), outline, spacing, policy)
    assert roi.pixels.shape == (SMALL, SMALL)
    assert roi.pixels.dtype == np.float32
    assert 1 - roi.pixels.mean(dtype=float) == pytest.approx(roi.padded, abs=0.02)
    inside = [
        max(0.0, min(stop, length) - max(start, 0.0)) / (stop - start)
        for start, stop, length in ((roi.box.left, roi.box.right, 120), (roi.box.top, roi.box.bottom, 90))
    ]
    assert roi.padded == pytest.approx(1 - inside[0] * inside[1])
    grey = cut_roi(np.full((90, 120), 0.25, np.float32), outline, spacing, policy.model_copy(update={"padding": 0.25}))
    np.testing.assert_allclose(grey.pixels, 0.25, atol=1e-5)


@given(
    column=st.floats(5, 115),
    row=st.floats(5, 85),
    policy=policies,
    spacing=spacings,
    resolution=st.one_of(st.none(), st.floats(0.05, 1.0)),
)
@settings(max_examples=100)
def test_a_place_stays_where_it_was(
    column: float, row: float, policy: CropPolicy, spacing: tuple[float, float], resolution: float | None
) -> None:
    """A grey ramp holds each pixel's own coordinate, so the ROI must hold its own place.

    Pixels are flat, not a true ramp: the mean over a cell that cuts them is off by 1/8 pixel at most.
    """
    policy = policy.model_copy(update={"resolution_mm": resolution})
    rows, columns = np.mgrid[0:90, 0:120] + 0.5
    for ramp, start, stop, length in (
        (columns, "left", "right", 120),
        (rows, "top", "bottom", 90),
    ):
        roi = cut_roi((ramp / length).astype(np.float32), square(column, row, 4), spacing, policy)
        first, last = getattr(roi.box, start), getattr(roi.box, stop)
        places = first + (np.arange(SMALL) + 0.5) * (last - first) / SMALL
        seen = (roi.pixels if start == "left" else roi.pixels.T) * length
        # Away from the borders, where padding has no part in it: a cell, or a coarse pixel and its neighbour.
        margin = 2 + (last - first) / SMALL + 2 * (resolution or 0) / min(spacing)
        sure = (places > margin) & (places < length - margin)
        other = (roi.box.top, roi.box.bottom, 90) if start == "left" else (roi.box.left, roi.box.right, 120)
        across = other[0] + (np.arange(SMALL) + 0.5) * (other[1] - other[0]) / SMALL
        clear = margin + (other[1] - other[0]) / SMALL  # the cells' own size across, where pixels are not square
        lines = (across > clear) & (across < other[2] - clear)
        np.testing.assert_allclose(
            seen[lines][:, sure], np.broadcast_to(places[sure], (lines.sum(), sure.sum())), atol=0.13
        )


def test_the_papers_roi_is_the_images_own_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (600, 700)) / 65535
    roi = cut_roi(pixels.astype(np.float32), square(350.4, 300.2, 30), None, PAPER)
    assert (roi.box.left, roi.box.top, roi.box.right, roi.box.bottom) == (201, 151, 500, 450)
    np.testing.assert_array_equal(roi.pixels, pixels[151:450, 201:500].astype(np.float32))
    assert roi.padded == 0
    assert roi.mm_per_pixel is None
    assert not roi.spacing_assumed


def test_a_lesion_in_the_corner_is_padded_not_shifted() -> None:
    pixels = np.full((600, 700), 0.5, np.float32)
    pixels[0, 0] = 1
    roi = cut_roi(pixels, square(0.5, 0.5, 1), None, PAPER)
    assert np.unravel_index(roi.pixels.argmax(), roi.pixels.shape) == (149, 149)
    assert not roi.pixels[:149].any()
    assert not roi.pixels[:, :149].any()
    assert roi.padded == pytest.approx(1 - 150 * 150 / 299**2)


def test_reducing_is_the_mean_over_each_cell() -> None:
    pixels = np.random.default_rng(1).random((256, 256))
    policy = CropPolicy(side_px=256, size=SMALL)
    roi = cut_roi(pixels, square(128, 128, 10), None, policy)
    np.testing.assert_allclose(roi.pixels, pixels.reshape(64, 4, 64, 4).mean(axis=(1, 3)), atol=1e-5)


def test_enlarging_is_bilinear_as_pillow_does_it() -> None:
    pixels = np.random.default_rng(2).random((60, 60)).astype(np.float32)
    roi = cut_roi(pixels, square(30, 30, 4), None, CropPolicy(side_px=20, size=SMALL))
    box = (20, 20, 40, 40)
    # Pillow does not look past the box it is given, so the outermost half pixel differs.
    expected = np.asarray(Image.fromarray(pixels).crop((10, 10, 50, 50)).resize((128, 128), Image.Resampling.BILINEAR))
    assert (roi.box.left, roi.box.top, roi.box.right, roi.box.bottom) == box
    np.testing.assert_allclose(roi.pixels, expected[32:96, 32:96], atol=1e-5)


def test_a_fine_image_is_seen_as_coarsely_as_the_training_set() -> None:
    """The same breast at 0.07 mm and, averaged to 0.7 mm, as a film scan without spacing gives equal ROIs."""
    fine = np.random.default_rng(3).random((1000, 1000))
    coarse = fine.reshape(100, 10, 100, 10).mean(axis=(1, 3))
    policy = CropPolicy(kind="millimetres", side_mm=35, resolution_mm=0.7, assumed_spacing_mm=0.7)
    digital = cut_roi(fine, square(500, 500, 100), (0.07, 0.07), policy)
    film = cut_roi(coarse, square(50, 50, 10), None, policy)
    np.testing.assert_allclose(digital.pixels, film.pixels, atol=3e-5)
    assert (digital.spacing_assumed, film.spacing_assumed) == (False, True)
    assert (digital.mm_per_pixel, film.mm_per_pixel) == pytest.approx((0.07, 0.7))
    # And without the policy's resolution they are not.
    sharp = cut_roi(fine, square(500, 500, 100), (0.07, 0.07), policy.model_copy(update={"resolution_mm": None}))
    assert np.abs(sharp.pixels - film.pixels).mean() > 0.02


def test_a_squeezed_image_gives_the_roi_of_the_true_one() -> None:
    rows, columns = np.mgrid[0:400, 0:400] / 400
    true = 0.5 + 0.4 * np.sin(9 * columns) * np.cos(7 * rows)
    squeezed = true.reshape(400, 100, 4).mean(axis=2)  # four columns in one
    policy = CropPolicy(kind="lesion", factor=2, minimum_mm=10, size=SMALL)
    roi = cut_roi(true, square(200, 160, 100), (0.1, 0.1), policy)
    same = cut_roi(squeezed, square(200, 160, 100) / [4, 1], (0.1, 0.4), policy)
    assert same.box.right - same.box.left == pytest.approx((roi.box.right - roi.box.left) / 4)
    np.testing.assert_allclose(same.pixels, roi.pixels, atol=0.01)
    assert same.mm_per_pixel == pytest.approx(0.2)


def test_the_larger_of_lesion_and_minimum_sets_the_side() -> None:
    policy = CropPolicy(kind="lesion", factor=1.6, minimum_px=700)
    assert _side(lesion_box(square(900, 900, 100), policy)) == pytest.approx(700)
    assert _side(lesion_box(square(900, 900, 600), policy)) == pytest.approx(960)
    policy = CropPolicy(kind="lesion", factor=1.6, minimum_mm=35)
    assert _side(lesion_box(square(900, 900, 100), policy, (0.05, 0.05))) == pytest.approx(700)
    assert _side(lesion_box(square(900, 900, 100), policy, (0.1, 0.1))) == pytest.approx(350)


def test_spacing_that_is_needed_and_not_known_is_refused() -> None:
    pixels = np.zeros((100, 100), np.float32)
    for policy in (
        CropPolicy(kind="millimetres", side_mm=10),
        CropPolicy(kind="lesion", factor=1, minimum_mm=10),
        CropPolicy(kind="pixels", resolution_mm=0.1),
    ):
        with pytest.raises(ImageError, match="no pixel spacing"):
            cut_roi(pixels, square(50, 50, 10), None, policy)


@pytest.mark.parametrize(
    "outline", [np.zeros((0, 2)), np.zeros(2), np.zeros((3, 3)), np.array([[np.nan, 1]]), np.array([[np.inf, 1]])]
)
def test_outlines_that_are_none_are_refused(outline: np.ndarray) -> None:
    with pytest.raises(ImageError, match="outline of shape"):
        cut_roi(np.zeros((100, 100), np.float32), outline, None, PAPER)


def test_an_outline_beside_the_image_is_refused() -> None:
    with pytest.raises(ImageError, match="outside the image of 100 columns and 80 rows"):
        cut_roi(np.zeros((80, 100), np.float32), square(130, 40, 20), None, PAPER)
    with pytest.raises(ImageError, match="outside"):
        cut_roi(np.zeros((80, 100), np.float32), square(50, -30, 20), None, PAPER)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25}, (0.08, 0.08)),
        # Calibrated: differs from the detector's, so it is already that of the breast.
        (
            {
                "PixelSpacing": [0.09, 0.09],
                "ImagerPixelSpacing": [0.1, 0.1],
                "EstimatedRadiographicMagnificationFactor": 1.25,
            },
            (0.09, 0.09),
        ),
        # Equal and without a calibration type: the detector's once more.
        (
            {
                "PixelSpacing": [0.1, 0.1],
                "ImagerPixelSpacing": [0.1, 0.1],
                "EstimatedRadiographicMagnificationFactor": 1.25,
            },
            (0.08, 0.08),
        ),
        (
            {
                "PixelSpacing": [0.1, 0.1],
                "ImagerPixelSpacing": [0.1, 0.1],
                "PixelSpacingCalibrationType": "FIDUCIAL",
                "EstimatedRadiographicMagnificationFactor": 1.25,
            },
            (0.1, 0.1),
        ),
        ({"NominalScannedPixelSpacing": [0.05, 0.05]}, (0.05, 0.05)),
        ({"PixelSpacing": [0, 0], "NominalScannedPixelSpacing": [0.05, 0.05]}, (0.05, 0.05)),
        ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 0}, (0.1, 0.1)),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": 0.1}, None),
    ],
)
def test_spacing_by_the_standard(attributes: dict[str, Any], expected: tuple[float, float] | None) -> None:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    found = image_spacing(header)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "circle"},
        {"kind": "pixels", "side_mm": 3},
        {"kind": "millimetres"},
        {"kind": "lesion", "factor": 1.5},
        {"kind": "lesion", "factor": 1.5, "minimum_mm": 3, "minimum_px": 3},
        {"kind": "millimetres", "side_mm": -1},
        {"kind": "pixels", "padding": 2},
        {"kind": "pixels", "shape": "round"},
    ],
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CropPolicy(**wrong)


def _side(box: Any) -> float:
    return box.right - box.left
