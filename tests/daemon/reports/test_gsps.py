"""Presentation states: where they draw, what they leave unchanged, and how others read them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from daemon.errors import ReportError
from daemon.lesions.geometry import outline_of_mask, outline_of_region, region_of_outline
from daemon.lesions.lesion import Lesion, Region
from daemon.reports.gsps import graphic_points
from tests.support import report_objects as b
from tests.support.lesion_objects import mammogram as whole_mammogram
from tests.support.peers.programs import dciodvfy, program

ROWS, COLUMNS = 3328, 2560  # of b.mammogram


def state(*results: Any, image: Dataset, **more: Any) -> Dataset:
    (made,) = b.reports("gsps", list(results), image, **more)
    return b.reread(made)


def marked(image: Dataset, graphic_type: str, rows: int = ROWS, columns: int = COLUMNS) -> Lesion:
    points = np.asarray(b.REGIONS[graphic_type], np.float64)
    return b.lesion(image, graphic_type, points, outline=outline_of_region(Region(graphic_type, points), rows, columns))


def graphics(made: Dataset) -> list[Dataset]:
    return [item for each in made.GraphicAnnotationSequence for item in each.get("GraphicObjectSequence", [])]


def words(made: Dataset) -> list[str]:
    texts = [text for each in made.GraphicAnnotationSequence for text in each.TextObjectSequence]
    return [text.UnformattedTextValue for text in texts]


def test_pixel_units_are_scoord_s_numbers() -> None:
    """A segment of one pixel, at column 20 and row 10 counted from 0, is drawn around that pixel's middle.

    Table C.10-5: the top left corner of the first pixel is 0.0\\0.0, its bottom right corner 1.0\\1.0; so the
    pixel's middle is 20.5\\10.5, as in SCOORD (C.18.6.1.1).
    """
    mask = np.zeros((40, 60), bool)
    mask[10, 20] = True
    outline = outline_of_mask(mask)
    lesion = Lesion("1.2", "1.3", 1, outline, region_of_outline(outline))
    drawn = graphic_points(lesion, 40, 60)
    assert set(map(tuple, drawn.tolist())) == {(20.5, 10), (21, 10.5), (20.5, 11), (20, 10.5)}
    assert (drawn[0] == drawn[-1]).all()


@given(
    st.lists(st.tuples(st.floats(-1, 161), st.floats(-1, 201)), min_size=1, max_size=12),
    st.sampled_from(["POLYLINE", "MULTIPOINT"]),
)
def test_graphics_stay_within_the_image_and_inside_it_as_they_are(points: list[tuple[float, float]], kind: str) -> None:
    region = Region(kind, np.array(points))
    lesion = Lesion("1.2", "1.3", 1, outline_of_region(region, 200, 160), region)
    drawn = graphic_points(lesion, 200, 160)
    assert drawn.dtype == np.float32
    assert (drawn >= 0).all() and (drawn <= [160, 200]).all()
    for point in region.points if kind == "POLYLINE" else lesion.outline:
        assert np.abs(drawn - np.clip(point, 0, [160, 200])).max(axis=1).min() < 1e-4


def test_each_lesion_has_outline_number_class_and_probability() -> None:
    image = b.mammogram()
    results = [
        b.result(marked(image, "CIRCLE"), 0.8712),
        b.result(marked(image, "POLYLINE"), 0.0449),
        b.result(marked(image, "POINT"), 0.5),
    ]
    made = state(*results, image=image)
    assert words(made)[:3] == ["1: malignant 0.87", "2: benign 0.04", "3: malignant 0.50"]
    circle, polyline, point = graphics(made)
    assert [item.GraphicType for item in (circle, polyline, point)] == ["POLYLINE", "POLYLINE", "POINT"]
    assert {item.GraphicAnnotationUnits for item in (circle, polyline, point)} == {"PIXEL"}
    ring = np.reshape(circle.GraphicData, (-1, 2))
    np.testing.assert_allclose(np.hypot(*(ring - [500, 600]).T), 30, atol=0.1)
    assert (ring[0] == ring[-1]).all() and circle.GraphicFilled == "N"
    np.testing.assert_allclose(np.reshape(polyline.GraphicData, (-1, 2)), b.CONTOUR, rtol=1e-6)
    assert list(point.GraphicData) == [120.5, 340.5]
    for item in (circle, polyline, point):
        assert item.NumberOfGraphicPoints == len(item.GraphicData) / 2
    for annotation in made.GraphicAnnotationSequence:
        assert annotation.GraphicLayer == made.GraphicLayerSequence[0].GraphicLayer == "RESEARCH"


@pytest.mark.parametrize(
    ("probability", "said"),
    [
        (0.4961, "benign 0.496"),
        (0.4996, "benign 0.4996"),
        (0.494, "benign 0.49"),
        (0.5, "malignant 0.50"),
        (0.0018, "benign <0.01"),
        (0.0051, "benign 0.01"),
        (0.9949, "malignant 0.99"),
        (0.9983, "malignant >0.99"),
    ],
)
def test_what_is_drawn_does_not_contradict_the_threshold(probability: float, said: str) -> None:
    """The threshold of these tests is 0.5: "benign 0.50" would be one."""
    image = b.mammogram()
    assert words(state(b.result(b.lesion(image), probability), image=image))[0] == f"1: {said}"


@pytest.mark.parametrize("left", [5.0, 1200.0, 2500.0])
def test_a_text_stands_beside_its_outline_and_on_the_image(left: float) -> None:
    image = b.mammogram()
    square = [(left, 5), (left + 50, 5), (left + 50, 55), (left, 55), (left, 5)]
    made = state(b.result(b.lesion(image, points=square)), image=image)
    (text,) = made.GraphicAnnotationSequence[0].TextObjectSequence
    (start, top), (end, bottom) = text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner
    assert 0 <= start < end <= COLUMNS and 0 <= top < bottom <= ROWS
    assert start >= left + 50 or end <= left
    assert top < 55 and bottom > 5


def test_research_stands_on_every_image_and_untrained_where_it_is() -> None:
    image = b.mammogram()
    made = state(b.result(b.lesion(image)), image=image)
    assert words(made)[1:] == ["RESEARCH USE ONLY - not a medical device"]
    assert "RESEARCH ONLY" in made.SeriesDescription and "RESEARCH" in made.ContentLabel
    untrained = state(b.result(b.lesion(image)), image=image, algorithm=b.UNTRAINED)
    assert words(untrained)[1:] == [
        "RESEARCH USE ONLY - not a medical device",
        "UNTRAINED MODEL - the results are meaningless",
    ]
    assert "UNTRAINED" in untrained.SeriesDescription and "UNTRAINED" in untrained.ContentDescription


def test_the_whole_image_is_displayed_counted_from_one() -> None:
    image = b.mammogram()
    (area,) = state(b.result(b.lesion(image)), image=image).DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [COLUMNS, ROWS]
    assert list(area.PresentationPixelAspectRatio) == [1, 1]
    flat = b.mammogram(ImagerPixelSpacing=["0.1", "0.05"])
    (area,) = state(b.result(b.lesion(flat)), image=flat).DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == [2, 1]


def test_one_state_for_each_image_in_that_image_s_study() -> None:
    images = [b.mammogram("rcc"), b.mammogram("prior", StudyInstanceUID=b.uid("prior study"))]
    results = [b.result(b.lesion(image)) for image in (images[0], images[1], images[0])]
    first, second = map(b.reread, b.reports("gsps", results, *images))
    assert words(first)[:2] == ["1: malignant 0.87", "3: malignant 0.87"]
    assert words(second)[:1] == ["2: malignant 0.87"]
    for made, image in ((first, images[0]), (second, images[1])):
        assert made.StudyInstanceUID == image.StudyInstanceUID
        assert made.PatientID == image.PatientID
        (series,) = made.ReferencedSeriesSequence
        (reference,) = series.ReferencedImageSequence
        assert series.SeriesInstanceUID == image.SeriesInstanceUID
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
        for annotation in made.GraphicAnnotationSequence:
            assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_frames_have_their_own_lesions_and_windows() -> None:
    image = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=3)
    image.PerFrameFunctionalGroupsSequence = []
    for centre in (100, 200, 100):
        groups, voi = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, 50
        groups.FrameVOILUTSequence = [voi]
        image.PerFrameFunctionalGroupsSequence.append(groups)
    made = state(b.result(b.lesion(image, frame=2)), b.result(b.lesion(image, frame=3)), image=image)
    numbers = [each.ReferencedImageSequence[0].get("ReferencedFrameNumber") for each in made.GraphicAnnotationSequence]
    assert numbers == [2, 3, None]
    windows = {item.WindowCenter: item.ReferencedImageSequence[0] for item in made.SoftcopyVOILUTSequence}
    assert list(windows[100].ReferencedFrameNumber) == [1, 3]
    assert windows[200].ReferencedFrameNumber == 2


def test_the_same_arguments_give_the_same_bytes() -> None:
    image = b.mammogram()
    first, again = (b.reports("gsps", [b.result(b.lesion(image))], image)[0] for _ in range(2))
    assert b.saved(first) == b.saved(again)


def test_what_cannot_be_drawn_is_refused_with_the_reason() -> None:
    no_size = b.bare_mammogram()
    with pytest.raises(ReportError, match="Rows and Columns"):
        b.reports("gsps", [b.result(b.lesion(no_size))], no_size)
    wrong = b.mammogram_of_bytes({0x00281050: b"full", 0x00281051: b"10"})
    with pytest.raises(ReportError, match="WindowCenter of the image cannot be read"):
        b.reports("gsps", [b.result(b.lesion(wrong))], wrong)


def test_highdicom_s_reading_of_the_units_is_ours() -> None:
    """Another implementation agrees: AnnotationUnits.PIXEL puts the first pixel's corner at (0.0, 0.0)."""
    graphic = hd.pr.GraphicObject(
        graphic_type=hd.pr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(b.SQUARE, np.float32),
        units=hd.pr.AnnotationUnitsValues.PIXEL,
        is_filled=False,
    )
    image = b.mammogram()
    (ours,) = graphics(state(b.result(b.lesion(image)), image=image))
    np.testing.assert_allclose(np.ravel(ours.GraphicData), np.ravel(graphic.GraphicData))
    assert {element.keyword for element in ours} == {element.keyword for element in graphic}


# What may stand in an image; each must look the same with and without the presentation state.
LOOKS: dict[str, dict[str, Any]] = {
    "window": {"WindowCenter": 2500, "WindowWidth": 900},
    "first of windows": {"WindowCenter": [2500, 3000], "WindowWidth": [900, 100]},
    "inverted": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    "rescaled": {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 4000},
    "voi lut": {"VOILUTSequence": "lut"},
    "modality lut": {"ModalityLUTSequence": "lut", "WindowCenter": 1000, "WindowWidth": 2000},
}


def looking(changes: dict[str, Any]) -> Dataset:
    image = whole_mammogram(200, 160)
    for keyword, value in changes.items():
        if value == "lut":
            item = Dataset()
            item.LUTDescriptor, item.LUTExplanation = [4096, 0, 12], "steep"
            item.LUTData = (np.linspace(0, 1, 4096) ** 3 * 4095).astype("<u2").tobytes()
            item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
            if keyword == "ModalityLUTSequence":
                item.ModalityLUTType = "US"
                del image.RescaleSlope, image.RescaleIntercept, image.RescaleType
            else:
                del image.WindowCenter, image.WindowWidth
            value = [item]
        setattr(image, keyword, value)
    return image


@pytest.mark.peers
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_dcmtk_renders_the_image_the_same_with_and_without_it(look: str, implicit: bool, tmp_path: Path) -> None:
    """Return dcmp2pgm's pixels with the state, and dcmj2pnm's with the image's first window or LUT."""
    image = looking(LOOKS[look])
    if implicit:
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    header = dcmread(tmp_path / "image.dcm", stop_before_pixels=True)
    (made,) = b.reports("gsps", [b.result(b.lesion(header, points=[(9, 9), (50, 9), (50, 50), (9, 9)]))], header)
    made.save_as(tmp_path / "state.dcm", enforce_file_format=True)
    voi = "+Wi" if "WindowCenter" in image else "+Wl"
    bare = rendered("dcmj2pnm", voi, "1", tmp_path / "image.dcm", to=tmp_path / "bare.pgm")
    with_state = rendered("dcmp2pgm", "-p", tmp_path / "state.dcm", tmp_path / "image.dcm", to=tmp_path / "with.pgm")
    assert len(np.unique(bare)) > 10
    np.testing.assert_array_equal(bare, with_state)


def rendered(name: str, *arguments: str | Path, to: Path) -> np.ndarray:
    subprocess.run([program(name), *arguments, to], check=True, timeout=60)
    return np.asarray(Image.open(to))


def peers_cases() -> dict[str, Dataset]:
    image = b.mammogram()
    tomo = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    bare = b.bare_mammogram(Rows=200, Columns=160)
    every = [b.result(marked(image, kind)) for kind in b.REGIONS]
    return {
        "every region": b.reports("gsps", every, image)[0],
        "untrained": b.reports("gsps", every, image, algorithm=b.UNTRAINED)[0],
        "frames": b.reports("gsps", [b.result(b.lesion(tomo, frame=frame)) for frame in (17, 60)], tomo)[0],
        "bare": b.reports("gsps", [b.result(b.lesion(bare))], bare)[0],
    }


@pytest.mark.peers
@pytest.mark.parametrize("case", ["every region", "untrained", "frames", "bare"])
def test_dciodvfy_and_dcmpschk_find_no_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "state.dcm"
    peers_cases()[case].save_as(path, enforce_file_format=True)
    assert dciodvfy(path) == []
    said = subprocess.run([program("dcmpschk"), str(path)], capture_output=True, text=True, timeout=60)
    assert "Test passed." in said.stdout + said.stderr, said.stderr
