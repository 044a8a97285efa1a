"""Regions in reports of no template in particular, and what a hostile content tree must not do."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.tag import Tag

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions import sr_tree
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import References, lesion_references, read_lesions
from tests.support.lesion_objects import (
    MASS,
    code_item,
    container,
    image_item,
    item,
    mammogram,
    report_by_hand,
    scoord,
)

REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
FINDINGS = Code("121070", "DCM", "Findings")
FINDING = Code("121071", "DCM", "Finding")
AREA = Code("42798000", "SCT", "Area")
ENHANCED = "1.2.840.10008.5.1.4.1.1.88.22"
COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"
SQUARE = [(10, 20), (30, 20), (30, 50), (10, 50), (10, 20)]
OTHER = [(40, 20), (60, 20), (60, 50), (40, 50), (40, 20)]


def box(points: np.ndarray) -> tuple[float, float, float, float]:
    return (*points.min(axis=0), *points.max(axis=0))


def sent(dataset: Dataset) -> Dataset:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(file.getvalue()))


def read(report: Dataset, *images: Dataset) -> LesionReading:
    return read_lesions(report, {str(image.SOPInstanceUID): image for image in images}, {}, Lesions())


@pytest.fixture(scope="module")
def image() -> Dataset:
    return mammogram(100, 80)


@pytest.mark.parametrize("sop_class_uid", [ENHANCED, COMPREHENSIVE, "1.2.840.10008.5.1.4.1.1.88.34"])
def test_any_region_selected_from_an_image_is_a_lesion(image: Dataset, sop_class_uid: str) -> None:
    regions = [scoord("POLYLINE", points, [image_item(image)], name=None) for points in (SQUARE, OTHER)]
    report = sent(report_by_hand([image], [container(FINDINGS, regions)], root=REPORT, sop_class_uid=sop_class_uid))
    assert lesion_references(report) == References((image.SOPInstanceUID,), ())
    assert [box(lesion.outline) for lesion in read(report, image).lesions] == [(10, 20, 30, 50), (40, 20, 60, 50)]


def test_a_region_under_a_coded_finding_has_that_finding(image: Dataset) -> None:
    region = scoord("CIRCLE", [(40, 50), (45, 50)], [image_item(image)], relationship="INFERRED FROM")
    finding = code_item(FINDING, MASS, children=[region])
    (lesion,) = read(sent(report_by_hand([image], [finding], root=REPORT)), image).lesions
    assert box(lesion.outline) == (35, 45, 45, 55)
    assert lesion.finding is not None and lesion.finding.value == "4147007"


def test_measurements_of_one_region_are_one_lesion(image: Dataset) -> None:
    measured = [
        item(
            "NUM",
            AREA,
            "CONTAINS",
            [scoord("POLYLINE", SQUARE, [image_item(image)], relationship="INFERRED FROM")],
            MeasuredValueSequence=[],
        )
        for _ in range(2)
    ]
    assert len(read(sent(report_by_hand([image], measured, root=REPORT)), image).lesions) == 1


def test_a_breast_outline_is_told_by_its_name(image: Dataset) -> None:
    outline = scoord("POLYLINE", OTHER, [image_item(image)], name=Code("111007", "DCM", "Breast Outline"))
    report = sent(report_by_hand([image], [outline, scoord("POLYLINE", SQUARE, [image_item(image)])], root=REPORT))
    reading = read(report, image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(10, 20, 30, 50)]
    assert "DCM:111007" in reading.left_out[0].reason


def test_a_dose_report_is_no_lesion_object(image: Dataset) -> None:
    dose = container(
        Code("113706", "DCM", "Accumulated X-Ray Dose Data"), [item("NUM", AREA, MeasuredValueSequence=[])]
    )
    report = report_by_hand([image], [dose], root=REPORT, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.67")
    assert lesion_references(sent(report)) is None


def test_a_region_of_too_many_points_is_refused(image: Dataset) -> None:
    region = scoord("MULTIPOINT", [(1, 1)] * 100_001, [image_item(image)])
    with pytest.raises(LesionError, match="100001 points; at most 100000"):
        read(report_by_hand([image], [region], root=REPORT), image)


def test_a_deep_tree_is_walked(image: Dataset) -> None:
    node = scoord("POLYLINE", SQUARE, [image_item(image)])
    for _ in range(400):
        node = container(FINDINGS, [node])
    assert len(read(report_by_hand([image], [node], root=REPORT), image).lesions) == 1


def test_a_tree_without_end_is_refused(image: Dataset) -> None:
    node = container(FINDINGS, [])
    node.ContentSequence = [node]
    with pytest.raises(LesionError, match="501 deep"):
        lesion_references(report_by_hand([image], [node], root=REPORT))


def test_a_tree_too_wide_is_refused(image: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sr_tree, "MAX_ITEMS", 20)
    report = report_by_hand([image], [container(FINDINGS, []) for _ in range(20)], root=REPORT)
    with pytest.raises(LesionError, match="has 21 content items"):
        lesion_references(report)


def test_graphic_data_of_half_a_number_are_refused(image: Dataset) -> None:
    region = scoord("POLYLINE", SQUARE, [image_item(image)])
    tag = Tag("GraphicData")
    region[tag] = RawDataElement(tag, "FL", 3, b"\0\0\0", 0, False, True)
    with pytest.raises(LesionError, match="its content is malformed: BytesLengthException"):
        lesion_references(report_by_hand([image], [region], root=REPORT))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=100, deadline=None)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_give_a_reading_or_a_reason(places: list[tuple[float, int]]) -> None:
    image = mammogram(20, 20, sop_instance_uid="1.2.3")
    region = scoord("POLYLINE", [(1, 1), (9, 1), (9, 9), (1, 1)], [image_item(image, frame=1)])
    group = container(Code("125007", "DCM", "Measurement Group"), [code_item(FINDING, MASS), region])
    file = BytesIO()
    report_by_hand([image], [group]).save_as(file, enforce_file_format=True)
    content = bytearray(file.getvalue())
    start = len(content) // 2  # the content tree; what precedes it is the listener's
    for share, value in places:
        content[start + int(share * (len(content) - start - 1))] = value
    try:
        report = pydicom.dcmread(BytesIO(content))
    except Exception:
        return  # not a readable file: refused before lesions are looked for
    try:
        if lesion_references(report) is not None:
            read(report, image)
    except LesionError as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_content_gives_a_reading_or_a_reason(data: st.DataObject) -> None:
    """Drop or spoil any attributes anywhere in a good report: nothing but LesionError may come out."""
    image = mammogram(20, 20)
    points = [(1, 1), (9, 1), (9, 9), (1, 1)]
    report = report_by_hand(
        [image],
        [
            container(
                Code("125007", "DCM", "Measurement Group"),
                [code_item(FINDING, MASS), scoord("POLYLINE", points, [image_item(image, frame=1)])],
            ),
            code_item(FINDING, MASS, children=[scoord("CIRCLE", points[:2], [image_item(image)])]),
        ],
        root=data.draw(st.sampled_from([REPORT, Code("111036", "DCM", "Mammography CAD Report")])),
    )
    for _ in range(data.draw(st.integers(1, 3))):
        holders = list(datasets(report))
        holder = data.draw(st.sampled_from(holders))
        keywords = [element.keyword for element in holder if element.keyword not in ("SOPInstanceUID", "SOPClassUID")]
        if not keywords:
            continue
        keyword = data.draw(st.sampled_from(keywords))
        if data.draw(st.booleans()) or holder[keyword].VR == "SQ":
            delattr(holder, keyword)
        else:
            holder[keyword].value = None
    try:
        if lesion_references(report) is not None:
            read(report, image)
    except LesionError as error:
        assert str(error)


def datasets(dataset: Dataset) -> list[Dataset]:
    found = [dataset]
    for holder in found:
        found.extend(child for element in holder if element.VR == "SQ" for child in element.value)
    return found
