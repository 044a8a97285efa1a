"""Measurement groups as viewers write them (Cornerstone's adapters 5.14, dwv 0.36), by hand."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from tests.support.lesion_objects import IMAGE_REGION, image_item, item, scoord

Point = tuple[float, float]
TRACKING_ID = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
COMMENT = Code("121106", "DCM", "Comment")
SHORT_LABEL = Code("125309", "DCM", "Short Label")
REFERENCE_POINTS = Code("122438", "DCM", "Reference Points")


def num(name: str, unit: str, children: Sequence[Dataset] = ()) -> Dataset:
    value, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
    value.NumericValue, value.MeasurementUnitsCodeSequence = "1", [code]
    concept = Code("121206", "DCM", name) if name == "Distance" else Code(name[:16], "99TEST", name)
    return item("NUM", concept, "CONTAINS", children, MeasuredValueSequence=[value])


def cornerstone_group(
    image: Dataset, tool: str, corners: Sequence[Point], *, label: str = "", measure: str = "Length"
) -> list[Dataset]:
    """What OHIF writes for a tool: geometry under its measurements, the label as a comment."""
    identifier = tool if ":" in tool else f"Cornerstone3DTools@^0.1.0:{tool}"
    first, second, third = corners[:3]

    def drawn(kind: str, points: Sequence[Point]) -> Dataset:
        return scoord(kind, points, [image_item(image)], name=None, relationship="INFERRED FROM")

    if tool == "Length":
        measured = [num(measure, "mm", [drawn("POLYLINE", [first, third])])]
    elif tool == "Bidirectional":
        measured = [num("Long Axis", "mm", [drawn("POLYLINE", [first, third])])]
        measured += [num("Short Axis", "mm", [drawn("POLYLINE", [second, corners[3]])])]
    elif tool == "Probe" or "KeyImage" in tool:
        measured = [num("Center", "1", [drawn("POINT", [first])])]
    elif tool == "ArrowAnnotate":
        measured = [num("Center", "1", [drawn("POLYLINE", [first, third])])]
    elif "Angle" in tool:
        measured = [num("Angle", "deg", [drawn("POLYLINE", corners)])]
    else:
        measured = [num("Area", "mm2", [drawn("POLYLINE", corners)])]
    comment = [item("TEXT", COMMENT, "CONTAINS", TextValue=label)] if label else []
    return [*_tracking(identifier), *measured, *comment]


def text_position(image: Dataset, point: Point, name: str) -> Dataset:
    """The place that a label was dragged to."""
    return scoord("POINT", [point], [image_item(image)], name=Code(name, "99CS3D", "Text Annotation Position"))


def arrow_group(image: Dataset, graphic_type: str, tip: Point, tail: Point) -> list[Dataset]:
    return [
        *_tracking("Cornerstone3DTools@^0.1.0:ArrowAnnotate"),
        num("Center", "1", [scoord(graphic_type, [tip, tail], [image_item(image)], name=None)]),
    ]


def angle_group(image: Dataset, corners: Sequence[Point]) -> list[Dataset]:
    """A protractor of dwv."""
    return [scoord("MULTIPOINT", corners, [image_item(image)]), *_tracking("1"), num("Angle", "deg")]


def dwv_group(
    image: Dataset, graphic_type: str, points: Sequence[Point], *, label: str = "", label_at: Point | None = None
) -> list[Dataset]:
    """A TID 1410 group of dwv: the label's place below the label."""
    place = []
    if label_at is not None:
        place = [scoord("POINT", [label_at], [image_item(image)], name=REFERENCE_POINTS, relationship="HAS PROPERTIES")]
    labels = [item("TEXT", SHORT_LABEL, "HAS CONCEPT MOD", place, TextValue=label)] if label else []
    return [scoord(graphic_type, points, [image_item(image)], name=IMAGE_REGION), *_tracking("1"), *labels]


def dwv_arrow_group(image: Dataset, tip: Point, tail: Point) -> list[Dataset]:
    """An arrow of dwv: its tip as the region, its tail as a reference point."""
    end = scoord("MULTIPOINT", [tail], [image_item(image)], name=REFERENCE_POINTS, relationship="HAS CONCEPT MOD")
    return [*dwv_group(image, "POINT", [tip]), end]


def _tracking(identifier: str) -> list[Dataset]:
    return [
        item("TEXT", TRACKING_ID, "HAS OBS CONTEXT", TextValue=identifier),
        item("UIDREF", TRACKING_UID, "HAS OBS CONTEXT", UID="1.2.3.4"),
    ]
