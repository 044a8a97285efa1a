"""The one path from a DICOM image to ROIs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import RLELossless

import model.roi_extraction
from model.crop import CropPolicy, cut_roi
from model.errors import ImageError
from model.image import open_image, read_frame
from model.normalise import NormalisationPolicy, normalise
from model.roi_extraction import Cut, cut_rois
from tests.support.bundles import image, noise, square

CROP = CropPolicy(kind="pixels", side_px=64, size=64)
DEPTH = NormalisationPolicy(intensity="bit_depth")


def test_rois_come_in_order_and_each_frame_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = noise((2, 200, 180), 16)
    dataset = image(stored, 16)
    dataset.compress(RLELossless, generate_instance_uid=False)
    decoded = []
    read = model.roi_extraction.read_frame
    monkeypatch.setattr(model.roi_extraction, "read_frame", lambda *given: decoded.append(given[1]) or read(*given))
    places = [(2, 60, 70), (1, 100, 50), (2, 90, 120)]
    rois = cut_rois(dataset, [Cut(frame, square(column, row, 9)) for frame, column, row in places], CROP, DEPTH)
    assert sorted(decoded) == [1, 2]
    for (frame, column, row), roi in zip(places, rois, strict=True):
        expected = stored[frame - 1, row - 32 : row + 32, column - 32 : column + 32] / np.float64(65535)
        np.testing.assert_array_equal(roi.pixels, expected.astype(np.float32))


def test_a_digital_mammogram_and_a_film_scan_give_one_roi() -> None:
    """One lesion on both paths: 0.07 mm MONOCHROME1 with magnification, and a coarse film without spacing.

    The box begins on a whole film pixel; on noise, another phase of the coarse grid would be another ROI.
    """
    fine = np.random.default_rng(5).integers(0, 4096, (500, 500))
    coarse = np.rint(fine.reshape(50, 10, 50, 10).mean(axis=(1, 3)))
    digital = image(
        (4095 - fine).astype(np.uint16),
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        ImagerPixelSpacing=[0.077, 0.077],
        EstimatedRadiographicMagnificationFactor=1.1,
    )
    film = image(coarse.astype(np.uint16))
    policy = CropPolicy(kind="lesion", factor=1.5, minimum_mm=18.2, resolution_mm=0.7, assumed_spacing_mm=0.7, size=64)
    (seen,) = cut_rois(digital, [Cut(1, square(250, 250, 30))], policy, DEPTH)
    (assumed,) = cut_rois(film, [Cut(1, square(25, 25, 3))], policy, DEPTH)
    np.testing.assert_allclose(seen.pixels, assumed.pixels, atol=0.5 / 4095 + 2e-5)
    assert seen.mm_per_pixel == pytest.approx(0.07)
    assert not seen.spacing_assumed
    assert assumed.spacing_assumed


def test_a_frame_that_is_not_there_is_named() -> None:
    with pytest.raises(ImageError, match="no frame 2"):
        cut_rois(image(noise((100, 100))), [Cut(2, square(50, 50, 9))], CROP, DEPTH)
    assert cut_rois(image(noise((100, 100))), [], CROP, DEPTH) == []


@pytest.mark.parametrize("intensity", ["voi", "percentiles", "bit_depth"])
@pytest.mark.parametrize("signed", [False, True])
def test_what_is_cut_from_the_file_is_what_is_cut_from_the_whole_image(
    intensity: str, signed: bool, tmp_path: Path
) -> None:
    """To the last bit, since the report's UID hangs on it."""
    stored = noise((300, 280), 12, signed)
    dataset = image(stored, WindowCenter=1000, WindowWidth=1500, PixelPaddingValue=7)
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    policy = NormalisationPolicy.model_validate({"intensity": intensity})
    cuts = [Cut(1, square(column, row, 20)) for column, row in ((100.5, 90), (5, 5), (275, 296))]
    whole = normalise(read_frame(dataset), policy)
    for crop in (CROP, CropPolicy(kind="lesion", factor=1.7, minimum_px=30, size=48)):
        for cut, roi in zip(cuts, cut_rois(open_image(tmp_path / "image.dcm"), cuts, crop, policy), strict=True):
            expected = cut_roi(whole, cut.outline, None, crop)
            np.testing.assert_array_equal(roi.pixels, expected.pixels)
            assert roi.box == expected.box
