"""Secondary Captures: what is drawn where, what is not drawn, and what dicom3tools and DCMTK make of them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from daemon.errors import ReportError
from daemon.lesions.lesion import Code
from daemon.reports import rendering
from daemon.reports.case import Case, Edition, Result
from daemon.reports.display_image import View
from daemon.reports.registry import KINDS
from model.prediction import Prediction
from model.roi import ROI_SIZE, Box, Roi
from tests.support import report_objects as b
from tests.support.peers.programs import dciodvfy, program

ORANGE, BLUE = np.array([255, 150, 50]), np.array([90, 200, 250])


def result(image: Dataset, left: float = 400, top: float = 600, probability: float = 0.87, **facts: Any) -> Result:
    """A square of 400 pixels; the network saw 598 pixels around its middle as a grey ramp from left to right.

    Its heat map is hot in the bottom right corner.
    """
    square = [(left, top), (left + 400, top), (left + 400, top + 400), (left, top + 400), (left, top)]
    heat = np.zeros((10, 10), np.float32)
    heat[8:, 8:] = 0.002
    roi = Roi(
        pixels=np.tile(np.linspace(0, 1, ROI_SIZE, dtype=np.float32), (ROI_SIZE, 1)),
        box=Box(left - 99, top - 99, left + 499, top + 499),
        padded=facts.pop("padded", 0.0),
        mm_per_pixel=0.07,
        spacing_assumed=False,
    )
    prediction = Prediction(probability, probability >= 0.5, "engine", b.BUNDLE, facts.pop("heat_map", heat))
    return Result(b.lesion(image, points=square, **facts), roi, prediction)


def captures(
    results: list[Result], *images: Dataset, algorithm: Any = b.TRAINED, views: dict[Any, View] | None = None
) -> list[Dataset]:
    dark = View(np.full((832, 640), 30, np.uint8), 0.25)  # of 3328 x 2560
    frames = {(each.lesion.image_uid, each.lesion.frame): dark for each in results}
    case = Case(b.source(), {str(image.SOPInstanceUID): image for image in images}, results, algorithm, (), frames)
    if views is not None:
        case = Case(case.source, case.images, results, algorithm, (), views)
    edition = Edition("sc", str(case.source.SOPInstanceUID), "reading", b.BUNDLE, b.WRITTEN_AT)
    return list(KINDS["sc"](case, edition))


def pixels(capture: Dataset) -> np.ndarray:
    return b.reread(capture).pixel_array.astype(int)


def near(pixel: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(pixel - colour).max(axis=-1) < 40


def view_corner(drawn: np.ndarray) -> tuple[int, int]:
    """Row and column of the view's first pixel: the view of these tests is grey 30, nothing around it is."""
    grey = (drawn == 30).all(axis=-1)
    return int(np.argmax(grey.any(axis=1))), int(np.argmax(grey.any(axis=0)))


def test_the_outline_is_where_the_lesion_is() -> None:
    image = b.mammogram()
    (capture,) = captures([result(image)], image)
    drawn = pixels(capture)
    row, column = view_corner(drawn)
    view = drawn[row : row + 832, column : column + 640]
    # The square of 400 to 800 columns and 600 to 1000 rows, at a quarter.
    for y, x in ((150, 150), (250, 150), (200, 100), (200, 200)):
        assert near(view[y - 2 : y + 3, x - 2 : x + 3], ORANGE).any(), (y, x)
    inside = view[160:240, 110:190]
    assert (inside == 30).all()
    coloured = near(view, ORANGE)
    coloured[143:258, 93:208] = False
    rows, columns = np.nonzero(coloured)  # what remains is the label
    assert len(rows) and np.ptp(rows) < 30 and np.ptp(columns) < 200


def test_the_crop_is_what_the_network_saw_and_the_heat_is_where_the_map_has_it() -> None:
    image = b.mammogram()
    (capture,) = captures([result(image)], image)
    drawn = pixels(capture)
    row, column = view_corner(drawn)
    first = column + 640 + 16  # the crops stand beside the view
    crop = drawn[row + 34 : row + 34 + 440, first : first + 440]
    assert (crop[..., 0] == crop[..., 1]).all()
    np.testing.assert_allclose(crop[200, :, 0], np.linspace(0, 255, 440), atol=4)
    heat = drawn[row + 34 : row + 34 + 440, first + 448 : first + 888]
    warmth = heat[..., 0] - heat[..., 2]
    assert warmth[410:430, 410:430].mean() > 60
    assert np.abs(warmth[:200, :60]).max() == 0
    np.testing.assert_array_equal(heat[:200, :60], crop[:200, :60])


@pytest.mark.parametrize("heat_map", [None, np.zeros((10, 10), np.float32)], ids=["none", "nothing"])
def test_without_heat_the_crop_stands_bare(heat_map: np.ndarray | None) -> None:
    image = b.mammogram()
    (capture,) = captures([result(image, heat_map=heat_map)], image)
    drawn = pixels(capture)
    row, column = view_corner(drawn)
    right_of_view = drawn[row + 34 : row + 474, column + 660 :]
    assert np.abs(right_of_view[..., 0] - right_of_view[..., 2]).max() < 10  # grey, and the ground's slight blue


def test_classes_have_colours_and_untrained_has_a_red_band() -> None:
    image = b.mammogram()
    view = np.s_[100:800, : 16 + 640]  # around it a heat map and the headings have colours too
    trained = pixels(captures([result(image)], image)[0])
    malignant = trained[view]
    benign = pixels(captures([result(image, probability=0.2)], image)[0])[view]
    untrained = pixels(captures([result(image)], image, algorithm=b.UNTRAINED)[0])
    assert near(malignant, ORANGE).any() and not near(malignant, BLUE).any()
    assert near(benign, BLUE).any() and not near(benign, ORANGE).any()
    red = (untrained == [176, 32, 36]).all(axis=-1)
    assert red.any(axis=1).sum() > 30 and red.sum(axis=1).max() > 0.7 * untrained.shape[1]
    assert not (trained == [176, 32, 36]).all(axis=-1).any()


def test_nothing_of_the_patient_or_of_free_words_is_drawn() -> None:
    """Two patients, two names of the lesion, the same picture."""
    one = b.mammogram()
    other = b.mammogram(PatientName="Other^Person", PatientID="X-77", AccessionNumber="Z", StudyDate="20200101")
    named = result(other, tracking_id="Other Person's mass", finding=Code("1", "99X", "Person"))
    np.testing.assert_array_equal(pixels(captures([result(one)], one)[0]), pixels(captures([named], other)[0]))


def test_nothing_is_written_where_viewers_write_their_own() -> None:
    """Patient, series and window stand in the corners of nearly every viewer."""
    image = b.mammogram()
    drawn = pixels(captures([result(image)], image)[0])
    row, _ = view_corner(drawn)
    below = row + 850
    side = round(0.14 * drawn.shape[1])
    ground = (drawn == [16, 20, 24]).all(axis=-1)
    for corner in (np.s_[:row, :side], np.s_[:row, -side:], np.s_[below:, :side], np.s_[below:, -side:]):
        assert ground[corner].all()
    assert not ground[:row].all() and not ground[below:].all()


def test_view_and_frame_are_named_from_codes() -> None:
    tomo = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    assert rendering._caption(tomo, 17) == "right CC frame 17 of 60"
    coded = b.mammogram(ViewPosition=None, ImageLaterality=None)
    assert rendering._caption(coded, 1) == ""


def test_the_small_print_names_model_threshold_and_what_a_heat_map_is() -> None:
    said = " ".join(rendering._small_print(b.TRAINED, 3))
    for part in ("Xception-C 1.0.0", "0.50", "3 more lesions", "Grad-CAM", "no outline", "no explanation"):
        assert part in said
    assert "more lesions" not in " ".join(rendering._small_print(b.TRAINED, 0))


def test_threshold_and_result_can_be_told_apart() -> None:
    algorithm = replace(b.TRAINED, threshold=0.4237)
    assert "probability of 0.4237 on" in " ".join(rendering._small_print(algorithm, 0)), "beside benign 0.42"
    assert "0.80 on" in " ".join(rendering._small_print(replace(b.TRAINED, threshold=0.8), 0))


LOSSY = {"LossyImageCompression": "01"}


@pytest.mark.parametrize(
    ("header", "syntax", "expected"),
    [
        ({}, "1.2.1", ("00", None, None)),
        ({"LossyImageCompression": "00"}, "1.2.4.90", ("00", None, None)),
        (LOSSY, "1.2.1", ("01", None, None)),
        (
            {**LOSSY, "LossyImageCompressionRatio": "12.5", "LossyImageCompressionMethod": "ISO_10918_1"},
            "1.2.1",
            ("01", "12.5", "ISO_10918_1"),
        ),
        (
            {
                **LOSSY,
                "LossyImageCompressionRatio": ["4", "10.25"],
                "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
            },
            "1.2.1",
            ("01", ["4", "10.25"], ["ISO_10918_1", "ISO_15444_1"]),
        ),
        ({}, "1.2.4.50", ("01", None, None)),
        ({}, "1.2.4.51", ("01", None, None)),
        ({"LossyImageCompression": "00"}, "1.2.4.81", ("01", None, None)),
        ({}, "1.2.4.91", ("01", None, None)),
        ({"LossyImageCompression": "00"}, "1.2.4.91", ("00", None, None)),
    ],
)
def test_what_lost_something_once_says_so(header: dict[str, Any], syntax: str, expected: tuple[Any, ...]) -> None:
    image = b.mammogram(**header)
    image.file_meta.TransferSyntaxUID = f"1.2.840.10008.{syntax}"
    capture = b.reread(captures([result(image)], image)[0])
    names = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    assert tuple(capture.get(name) for name in names) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 6, 15, 60])
def test_any_number_of_lesions_gives_a_picture_of_sensible_size(count: int) -> None:
    image = b.mammogram()
    results = [result(image, left=50 + 300 * (n % 8), top=50 + 400 * (n // 8)) for n in range(count)]
    (capture,) = captures(results, image)
    assert 800 < capture.Rows < 1400
    assert 1200 < capture.Columns < 2000
    side, rows, columns = rendering._grid(count, 832)
    assert rows * columns >= min(count, 12)
    assert side == {1: 440, 2: 299}.get(count, side)


def test_labels_cover_neither_each_other_nor_the_outlines() -> None:
    taken = [(100.0 + 40 * n, 100.0, 130.0 + 40 * n, 130.0) for n in range(8)]
    lesions = list(taken)
    for lesion in lesions:
        place = rendering._free_place(np.zeros((832, 640), np.uint8), lesion, 150, 28, taken)
        assert not any(rendering._overlap(place, other) for other in taken)
        assert place[0] >= 0 and place[1] >= 0 and place[2] <= 640 and place[3] <= 832
        taken.append(place)


def test_patient_study_source_and_marking_are_in_the_header() -> None:
    image = b.mammogram()
    capture = b.reread(captures([result(image)], image)[0])
    for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber"):
        assert capture[keyword].value == image[keyword].value
    assert capture.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (capture.ConversionType, capture.BurnedInAnnotation) == ("WSD", "YES")
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert "RESEARCH" in capture.SeriesDescription and "RESEARCH USE ONLY" in capture.ImageComments
    (source,) = capture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert "ReferencedFrameNumber" not in source
    assert "UNTRAINED" in captures([result(image)], image, algorithm=b.UNTRAINED)[0].ImageComments


def test_one_capture_for_each_image_and_each_frame_with_a_lesion() -> None:
    image = b.mammogram()
    tomo = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    results = [result(tomo, frame=9), result(image), result(tomo, frame=4), result(tomo, frame=9, left=1200)]
    made = captures(results, image, tomo)
    frames = [(each.SourceImageSequence[0].get("ReferencedFrameNumber")) for each in made]
    assert frames == [9, None, 4]
    assert len({each.SOPInstanceUID for each in made}) == len({each.SeriesInstanceUID for each in made}) == 3


def test_the_same_arguments_give_the_same_bytes() -> None:
    image = b.mammogram()
    first, again = (captures([result(image)], image)[0] for _ in range(2))
    assert b.saved(first) == b.saved(again)


def test_a_frame_that_cannot_be_shown_is_refused() -> None:
    image = b.mammogram()
    with pytest.raises(ReportError, match=r"frame 1 of image .* cannot be shown"):
        captures([result(image)], image, views={})


@pytest.mark.peers
@pytest.mark.parametrize("case", ["one", "untrained", "frame", "bare", "lossy"])
def test_dciodvfy_finds_no_error_and_dcmtk_shows_the_same_pixels(case: str, tmp_path: Path) -> None:
    image = {
        "frame": lambda: b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60),
        "lossy": lambda: b.mammogram(
            **LOSSY, LossyImageCompressionRatio="12.5", LossyImageCompressionMethod="ISO_10918_1"
        ),
        "bare": lambda: b.bare_mammogram(Rows=3328, Columns=2560),
    }.get(case, b.mammogram)()
    (capture,) = captures(
        [result(image, frame=60 if case == "frame" else 1)],
        image,
        algorithm=b.UNTRAINED if case == "untrained" else b.TRAINED,
    )
    capture.save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    assert dciodvfy(tmp_path / "capture.dcm") == []
    subprocess.run([program("dcmj2pnm"), tmp_path / "capture.dcm", tmp_path / "capture.ppm"], check=True, timeout=60)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "capture.ppm")), capture.pixel_array)
