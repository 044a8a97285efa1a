"""Presentation states as a source of lesions; where shapes lie is known from how they were drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.dicom.sop_classes import may_be_lesion_object
from daemon.errors import LesionError
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import References, lesion_references, read_lesions
from tests.support.lesion_objects import mammogram

CLASS = "1.2.840.10008.5.1.4.1.1.11."
SQUARE = [10, 20, 30, 20, 30, 50, 10, 50, 10, 20]


def dataset(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def reference(image: Dataset, **more: Any) -> Dataset:
    return dataset(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID, **more)


def graphic(kind: str, data: list[float], units: str = "PIXEL", **more: Any) -> Dataset:
    count = len(data) // 2
    return dataset(
        GraphicAnnotationUnits=units, GraphicDimensions=2, NumberOfGraphicPoints=count, GraphicData=data,
        GraphicType=kind, GraphicFilled="N", **more,
    )  # fmt: skip


def compound(kind: str, data: list[float], **more: Any) -> Dataset:
    return dataset(
        CompoundGraphicType=kind, CompoundGraphicUnits="PIXEL", GraphicDimensions=2, GraphicData=data, **more
    )


def text(words: str, anchor: list[float]) -> Dataset:
    return dataset(UnformattedTextValue=words, AnchorPoint=anchor, AnchorPointAnnotationUnits="PIXEL")


def state(image: Dataset, *graphics: Dataset, number: str = "1", **more: Any) -> Dataset:
    """A presentation state of one annotation, by hand (PS3.3 A.33)."""
    drawn = {"GraphicObjectSequence": [], "CompoundGraphicSequence": [], "TextObjectSequence": []}
    for item in graphics:
        kind = (
            "CompoundGraphic"
            if "CompoundGraphicType" in item
            else "TextObject"
            if "AnchorPoint" in item
            else "GraphicObject"
        )
        drawn[f"{kind}Sequence"].append(item)
    annotation = dataset(GraphicLayer="LAYER1", ReferencedImageSequence=[reference(image)], **drawn)
    series = dataset(SeriesInstanceUID=image.SeriesInstanceUID, ReferencedImageSequence=[reference(image)])
    return dataset(
        SOPClassUID=CLASS + number, SOPInstanceUID="1.2.3", PatientID=image.PatientID,
        StudyInstanceUID=image.StudyInstanceUID, ReferencedSeriesSequence=[series],
        GraphicAnnotationSequence=[annotation], **more,
    )  # fmt: skip


def read(source: Dataset, image: Dataset) -> LesionReading:
    return read_lesions(source, {str(image.SOPInstanceUID): image}, {}, Lesions())


def boxes(reading: LesionReading) -> list[list[float]]:
    return [[*lesion.outline.min(axis=0), *lesion.outline.max(axis=0)] for lesion in reading.lesions]


@pytest.fixture(scope="module")
def image() -> Dataset:
    return mammogram(200, 160)


@pytest.mark.parametrize("number", ["1", "2", "3", "4"])
def test_shapes_of_every_kind_of_presentation_state_are_lesions(image: Dataset, number: str) -> None:
    source = state(image, graphic("POLYLINE", SQUARE), graphic("CIRCLE", [60, 60, 60, 70]), number=number)
    assert may_be_lesion_object(source.SOPClassUID)
    assert lesion_references(source) == References((image.SOPInstanceUID,), ())
    assert np.allclose(boxes(read(source, image)), [[10, 20, 30, 50], [50, 50, 70, 70]], atol=0.1)


@pytest.mark.parametrize(
    ("drawn", "box"),
    [
        (graphic("POINT", [40, 50]), [40, 50, 40, 50]),
        (graphic("INTERPOLATED", SQUARE), [10, 20, 30, 50]),
        (graphic("ELLIPSE", [20, 50, 60, 50, 40, 40, 40, 60]), [20, 40, 60, 60]),
        (compound("RECTANGLE", [10, 20, 30, 50]), [10, 20, 30, 50]),
        (compound("ELLIPSE", [10, 20, 30, 50]), [10, 20, 30, 50]),
        (compound("MULTILINE", SQUARE), [10, 20, 30, 50]),
    ],
)
def test_each_graphic_type_lies_where_it_was_drawn(image: Dataset, drawn: Dataset, box: list[float]) -> None:
    assert np.allclose(boxes(read(state(image, drawn), image)), [box], atol=0.1)


@pytest.mark.parametrize(
    "drawn",
    [
        graphic("POLYLINE", [5, 5, 40, 60]),
        graphic("POLYLINE", [5, 5, 40, 60, 70, 20]),
        *(compound(kind, [5, 5, 40, 60]) for kind in ("RULER", "AXIS", "CROSSHAIR", "CUTLINE", "RANGELINE", "ARROW")),
    ],
)
def test_lines_rulers_and_axes_are_no_lesions(image: Dataset, drawn: Dataset) -> None:
    assert lesion_references(state(image, drawn)) is None
    reading = read(state(image, drawn, graphic("POLYLINE", SQUARE)), image)
    assert boxes(reading) == [[10, 20, 30, 50]] and reading.left_out[0].reason


def test_shapes_drawn_on_the_display_lie_in_the_displayed_area(image: Dataset) -> None:
    area = dataset(
        DisplayedAreaTopLeftHandCorner=[21, 41], DisplayedAreaBottomRightHandCorner=[120, 140],
        ReferencedImageSequence=[reference(image)],
    )  # fmt: skip
    drawn = graphic("POLYLINE", [0.1, 0.2, 0.3, 0.2, 0.3, 0.5, 0.1, 0.5, 0.1, 0.2], "DISPLAY")
    source = state(image, drawn, DisplayedAreaSelectionSequence=[area])
    assert np.allclose(boxes(read(source, image)), [[30, 60, 50, 90]])
    source.ImageHorizontalFlip = "Y"
    with pytest.raises(LesionError, match="rotated or flipped"):
        read(source, image)
    with pytest.raises(LesionError, match="no displayed area"):
        lesion_references(state(image, drawn))


def test_the_text_nearest_to_a_shape_is_its_label(image: Dataset) -> None:
    source = state(
        image, graphic("POLYLINE", SQUARE), graphic("CIRCLE", [100, 100, 100, 110]),
        text("mass", [31, 35]), text("nipple", [112, 100]),
    )  # fmt: skip
    reading = read(source, image)
    assert boxes(reading) == [[10, 20, 30, 50]] and "nipple" in reading.left_out[0].reason


def test_a_graphic_that_stands_for_a_compound_one_is_read_once(image: Dataset) -> None:
    again = graphic("POLYLINE", SQUARE, CompoundGraphicInstanceID=1)
    source = state(image, again, compound("RECTANGLE", [10, 20, 30, 50], CompoundGraphicInstanceID=1))
    assert len(read(source, image).lesions) == 1


def test_a_state_without_graphics_is_no_lesion_object(image: Dataset) -> None:
    assert lesion_references(state(image)) is None
    assert lesion_references(state(image, text("mass", [1, 1]))) is None


def test_a_frame_that_is_named_is_kept() -> None:
    stack = mammogram(200, 160, frames=4)
    source = state(stack, graphic("POLYLINE", SQUARE))
    source.GraphicAnnotationSequence[0].ReferencedImageSequence[0].ReferencedFrameNumber = 3
    assert [lesion.frame for lesion in read(source, stack).lesions] == [3]
