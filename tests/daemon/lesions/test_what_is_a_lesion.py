"""Marks of other programs that are no lesions or on no mammogram; each case was once classified."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.anatomy import word_in
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import lesion_references, read_lesions
from tests.support.lesion_objects import (
    MASS,
    MarkedRegion,
    cad_report_of,
    code_item,
    container,
    image_item,
    mammogram,
    measurement_report_of,
    report_by_hand,
    scoord,
    segmentation_of,
    single_image_finding,
)
from tests.support.viewer_objects import (
    angle_group,
    arrow_group,
    cornerstone_group,
    dwv_arrow_group,
    dwv_group,
    text_position,
)

ROWS, COLUMNS = 200, 160
SQUARE = [(10, 20), (30, 20), (30, 50), (10, 50), (10, 20)]
CLASS = "1.2.840.10008.5.1.4.1.1."
TISSUE = Code("85756007", "SCT", "Tissue")
BODY_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
SPLEEN_AS_MONAI = Code("78961009", "SCT", "tumor")  # MONAI Label: one code, the label as its meaning


def read(source: Dataset, *images: Dataset, **chosen: object) -> LesionReading:
    return read_lesions(source, {str(image.SOPInstanceUID): image for image in images}, {}, Lesions(**chosen))


def box(points: np.ndarray) -> list[float]:
    return [*points.min(axis=0), *points.max(axis=0)]


def grouped(image: Dataset, *groups: Sequence[Dataset]) -> Dataset:
    containers = [container(Code("125007", "DCM", "Measurement Group"), group) for group in groups]
    return report_by_hand([image], [container(Code("126010", "DCM", "Imaging Measurements"), containers)])


def mask(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    marked = np.zeros((rows, columns), np.uint8)
    marked[20:50, 10:30] = 1
    return marked


@pytest.fixture
def image() -> Dataset:
    return mammogram(ROWS, COLUMNS)


# --- 1. only mammograms ---


@pytest.mark.parametrize(
    ("sop_class", "modality", "body_part", "is_classified"),
    [
        ("1.2", "MG", "", True),
        ("1.2.1", "MG", "", True),
        ("13.1.3", "MG", "", True),
        ("1", "MG", "", True),
        ("1", "CR", "BREAST", True),
        ("1.1", "DX", "BREAST", True),
        ("7", "MG", "", True),
        ("7.3", "MG", "", True),
        ("1.1", "DX", "CHEST", False),
        ("1", "CR", "", False),
        ("7", "OT", "BREAST", False),
        ("2", "MG", "BREAST", False),  # CT
        ("4", "MG", "BREAST", False),  # MR
        ("6.1", "US", "BREAST", False),
        ("3.1", "US", "BREAST", False),
        ("20", "NM", "BREAST", False),
        ("128", "PT", "BREAST", False),
        ("12.1", "XA", "", False),
    ],
)
def test_only_mammograms_are_classified(
    image: Dataset, sop_class: str, modality: str, body_part: str, is_classified: bool
) -> None:
    image.SOPClassUID = CLASS + sop_class
    image.Modality, image.BodyPartExamined = modality, body_part
    del image.AnatomicRegionSequence
    for source in (measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]), _segmentation(image)):
        reading = read(source, image)
        assert len(reading.lesions) == is_classified
        if not is_classified:
            assert "classified" in reading.left_out[0].reason and modality in reading.left_out[0].reason


def _segmentation(image: Dataset) -> Dataset:
    """Made on a mammogram, as highdicom copies what other images do not have."""
    made = segmentation_of(mammogram(ROWS, COLUMNS), mask())
    source = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return made


def test_the_anatomic_region_makes_a_radiograph_a_mammogram(image: Dataset) -> None:
    image.SOPClassUID, image.Modality = CLASS + "1.1", "DX"
    assert len(read(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]), image).lesions) == 1
    image.AnatomicRegionSequence[0].CodeValue = "51185008"  # thorax
    assert not read(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]), image).lesions


def test_a_setting_lets_more_images_in_but_never_ultrasound(image: Dataset) -> None:
    report = measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)])
    image.Modality = "OT"
    for sop_class, classified in (("12.1", True), ("6.1", False)):
        image.SOPClassUID = CLASS + sop_class
        assert len(read(report, image, image_classes=(CLASS + sop_class,)).lesions) == classified


# --- 2. only the mark's own geometry ---


@pytest.mark.parametrize("name", ["TextPosition", "TextAnnotationPosition"])
@pytest.mark.parametrize("tool", ["Length", "Bidirectional", "Probe", "ArrowAnnotate", "RectangleROI"])
def test_where_a_label_was_dragged_to_is_no_part_of_the_lesion(image: Dataset, tool: str, name: str) -> None:
    plain = grouped(image, cornerstone_group(image, tool, SQUARE))
    dragged = grouped(image, [*cornerstone_group(image, tool, SQUARE), text_position(image, (120, 150), name)])
    (without,), (lesion,) = read(plain, image).lesions, read(dragged, image).lesions
    assert np.array_equal(lesion.outline, without.outline)
    assert box(lesion.outline)[2] <= 30


def test_the_place_of_a_label_of_dwv_is_no_part_of_the_lesion(image: Dataset) -> None:
    (lesion,) = read(
        grouped(image, dwv_group(image, "POLYLINE", SQUARE, label="L1", label_at=(120, 150))), image
    ).lesions
    assert box(lesion.outline) == [10, 20, 30, 50]


def test_control_points_of_a_spline_are_no_part_of_the_lesion(image: Dataset) -> None:
    points = scoord(
        "MULTIPOINT", [(5, 5), (90, 90)], [image_item(image)], name=Code("ControlPoints", "99CS3D", "Control Points")
    )
    (lesion,) = read(grouped(image, [*cornerstone_group(image, "SplineROI", SQUARE), points]), image).lesions
    assert box(lesion.outline) == [10, 20, 30, 50]


def test_a_place_of_a_label_alone_is_no_lesion_object(image: Dataset) -> None:
    assert lesion_references(grouped(image, [text_position(image, (20, 30), "TextPosition")])) is None


# --- 3. anatomy: type code, then label, then category ---


@pytest.mark.parametrize(
    ("kind", "category", "label", "is_lesion"),
    [
        (Code("60005003", "SCT", "Pectoralis major muscle"), BODY_STRUCTURE, "Segment_1", False),
        (Code("C0030747", "UMLS", "Pectoral muscle"), BODY_STRUCTURE, "Segment_1", False),
        (Code("C114467", "NCIt", "Breast Fibroglandular Tissue"), TISSUE, "FGT", False),
        (Code("X1", "UMLS", "Fibroglandular tissue"), TISSUE, "Segment_1", False),
        (SPLEEN_AS_MONAI, BODY_STRUCTURE, "tumor", True),  # MONAI Label
        (Code("78961009", "SCT", "pectoral"), BODY_STRUCTURE, "pectoral", False),
        (Code("78961009", "SCT", "Spleen"), BODY_STRUCTURE, "Segment_1", False),  # the category is all that is left
        (MASS, BODY_STRUCTURE, "Breast", True),  # the type code goes first
        (TISSUE, TISSUE, "Segment_1", True),
        (TISSUE, TISSUE, "Breast", False),
        (TISSUE, TISSUE, "left_pectoral", False),
        (TISSUE, TISSUE, "Nipple", False),
        (TISSUE, TISSUE, "SKIN", False),
        (TISSUE, TISSUE, "Hintergrund", False),
        (TISSUE, TISSUE, "Brustwarze links", False),
        (TISSUE, TISSUE, "pezón", False),
        (TISSUE, TISSUE, "marker", False),
        (TISSUE, TISSUE, "implant R", False),
        (TISSUE, TISSUE, "胸大肌", False),
        (TISSUE, TISSUE, "breast lesion", True),
        (TISSUE, TISSUE, "Mammakarzinom", True),
        (TISSUE, TISSUE, "masa en mama", True),
        (TISSUE, BODY_STRUCTURE, "mass 1", True),
        (TISSUE, BODY_STRUCTURE, "Segment_1", False),
        (TISSUE, TISSUE, "Lymph node", False),
        (TISSUE, TISSUE, "Lymphknoten axillär", False),
        (Code("443808008", "SCT", "Intramammary lymph node"), TISSUE, "", False),
    ],
)
def test_a_segment_is_told_by_type_then_label_then_category(
    image: Dataset, kind: Code, category: Code, label: str, is_lesion: bool
) -> None:
    segmentation = segmentation_of(image, mask(), finding=kind, category=category)
    segmentation.SegmentSequence[0].SegmentLabel = label
    reading = read(segmentation, image)
    assert len(reading.lesions) == is_lesion, reading.left_out
    assert is_lesion or reading.left_out[0].reason


def test_a_lymph_node_is_a_lesion_if_a_setting_says_so(image: Dataset) -> None:
    segmentation = segmentation_of(image, mask(), finding=Code("59441001", "SCT", "Lymph node"))
    assert not read(segmentation, image).lesions
    assert len(read(segmentation, image, lymph_nodes=True).lesions) == 1


def test_words_that_a_reader_typed_in_a_viewer_count_too(image: Dataset) -> None:
    for words, is_lesion in (("nipple", False), ("spiculated mass", True), ("?", True)):
        report = grouped(image, cornerstone_group(image, "RectangleROI", SQUARE, label=words))
        assert len(read(report, image).lesions) == is_lesion, words


def test_a_word_is_found_at_its_beginning_only() -> None:
    assert word_in("Left NIPPLE_1", ["nipple"]) and word_in("Mamillenschatten", ["mamill"])
    assert word_in("fair", ["air"]) is None and word_in("左乳房", ["乳房"])


# --- 4. tools that mark no lesion ---


@pytest.mark.parametrize(
    "identifier",
    [
        "Cornerstone3DTools@^0.1.0:Probe:KeyImage",
        "Cornerstone3DTools@^0.1.0:Probe:KeyImage:Series",
        "Cornerstone3DTools@^0.1.0:Angle",
        "Cornerstone3DTools@^0.1.0:CobbAngle",
        "cornerstoneTools@^4.0.0:Angle",
    ],
)
def test_key_images_and_angles_are_no_lesions(image: Dataset, identifier: str) -> None:
    reading = read(grouped(image, cornerstone_group(image, identifier, SQUARE[:3])), image)
    assert reading.lesions == () and identifier.split(":")[1].replace("Probe", "KeyImage") in reading.left_out[0].reason


def test_what_measures_an_angle_is_no_lesion_whoever_wrote_it(image: Dataset) -> None:
    reading = read(grouped(image, angle_group(image, SQUARE[:3])), image)
    assert reading.lesions == () and "angle" in reading.left_out[0].reason


@pytest.mark.parametrize(
    ("label", "measure", "is_lesion"),
    [
        ("", "Length", True),
        ("mass", "Length", True),
        ("nipple to lesion", "Length", False),
        ("Abstand", "Length", False),
        ("", "Distance", False),
        ("lesion", "Distance", True),
        ("", "Distance from nipple", False),
    ],
)
def test_distances_are_no_lesions(image: Dataset, label: str, measure: str, is_lesion: bool) -> None:
    group = cornerstone_group(image, "Length", SQUARE, label=label, measure=measure)
    reading = read(grouped(image, group), image)
    assert len(reading.lesions) == is_lesion
    assert is_lesion or "distance" in reading.left_out[0].reason


def test_a_diameter_with_the_code_of_a_mass_is_a_lesion_whatever_its_label(image: Dataset) -> None:
    group = [*cornerstone_group(image, "Length", SQUARE, label="near the nipple"), code_item(FINDING, MASS)]
    assert len(read(grouped(image, group), image).lesions) == 1


FINDING = Code("121071", "DCM", "Finding")


# --- 5. arrows ---


@pytest.mark.parametrize("written", ["polyline", "point of two points", "dwv"])
def test_an_arrow_marks_its_tip(image: Dataset, written: str) -> None:
    tip, tail = (40.0, 60.0), (90.0, 110.0)
    group = {
        "polyline": lambda: arrow_group(image, "POLYLINE", tip, tail),
        "point of two points": lambda: arrow_group(image, "POINT", tip, tail),
        "dwv": lambda: dwv_arrow_group(image, tip, tail),
    }[written]()
    (lesion,) = read(grouped(image, group), image).lesions
    assert lesion.outline.tolist() == [list(tip)] and lesion.region.graphic_type == "POINT"


# --- 6. implausible marks ---


@pytest.mark.parametrize(
    ("graphic_type", "points", "reason"),
    [
        ("POLYLINE", [(1, 1), (150, 1), (150, 190), (1, 190), (1, 1)], "of the image"),
        ("CIRCLE", [(5, 5), (5, 100)], "outside the image"),
        ("POLYLINE", [(10, 20), (30, 20), (30, 20), (10, 20), (10, 20)], "area of 0 pixels"),
    ],
)
def test_implausible_marks_are_left_out(
    image: Dataset, graphic_type: str, points: list[tuple[int, int]], reason: str
) -> None:
    regions = [MarkedRegion(graphic_type, points), MarkedRegion("POLYLINE", SQUARE)]
    reading = read(measurement_report_of(image, regions), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [[10, 20, 30, 50]]
    assert reason in reading.left_out[0].reason and "lesions." in reading.left_out[0].reason


def test_a_mark_longer_than_a_lesion_is_left_out(image: Dataset) -> None:
    image.PixelSpacing = image.ImagerPixelSpacing = [6, 6]  # 30 rows are 180 mm
    for source in (measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]), segmentation_of(image, mask())):
        assert "180 mm long" in read(source, image).left_out[0].reason
    assert len(read(source, image, max_extent_mm=200).lesions) == 1


def test_a_segment_of_the_whole_breast_is_left_out(image: Dataset) -> None:
    marked = mask()
    marked[10:190, 5:150] = 1
    assert "% of the image" in read(segmentation_of(image, marked), image).left_out[0].reason


# --- 7. tomosynthesis ---


def _square(size: int) -> list[tuple[int, int]]:
    return [(10, 20), (10 + size, 20), (10 + size, 20 + size), (10, 20 + size), (10, 20)]


def test_one_finding_of_a_cad_report_on_several_frames_is_one_lesion() -> None:
    stack = mammogram(ROWS, COLUMNS, frames=5)
    outlines = [
        scoord(
            "POLYLINE",
            _square(size),
            [image_item(stack, frame=frame)],
            name=Code("111041", "DCM", "Outline"),
            relationship="HAS PROPERTIES",
        )
        for frame, size in ((2, 10), (3, 30), (4, 20))
    ]
    finding = single_image_finding(MASS, (1, 1, 1), parts=outlines)
    reading = read(cad_report_of([stack], [finding]), stack)
    assert [(lesion.frame, box(lesion.outline)[2]) for lesion in reading.lesions] == [(3, 40)]
    assert "3 slices" in reading.left_out[0].reason


def test_groups_with_one_tracking_uid_are_one_lesion_on_its_best_frame() -> None:
    stack = mammogram(ROWS, COLUMNS, frames=5)
    uid = generate_uid()
    regions = [
        MarkedRegion("POLYLINE", _square(size), frame=frame, tracking_uid=uid)
        for frame, size in ((1, 10), (2, 20), (3, 10))
    ]
    regions.append(MarkedRegion("POLYLINE", _square(15), frame=2))
    reading = read(measurement_report_of(stack, regions), stack)
    assert [(lesion.frame, box(lesion.outline)[2]) for lesion in reading.lesions] == [(2, 30), (2, 25)]


def slices(count: int) -> list[Dataset]:
    """A tomosynthesis sent as single instances."""
    first = mammogram(ROWS, COLUMNS)
    made = []
    for number in range(1, count + 1):
        each = copy.deepcopy(first)
        each.SOPClassUID = CLASS + "13.1.3"
        each.SOPInstanceUID, each.InstanceNumber = generate_uid(), number
        made.append(each)
    return made


def test_slices_sent_as_single_instances_are_one_stack() -> None:
    stack = slices(3)
    uid = generate_uid()
    regions = [
        MarkedRegion("POLYLINE", _square(size), tracking_uid=uid, on=each)
        for each, size in zip(stack, (10, 30, 20), strict=True)
    ]
    (lesion,) = read(measurement_report_of(stack[0], regions), *stack).lesions
    assert lesion.image_uid == stack[1].SOPInstanceUID


def test_a_lesion_on_two_views_stays_two_though_it_has_one_tracking_uid(image: Dataset) -> None:
    other = mammogram(ROWS, COLUMNS, view="MLO", series_instance_uid=image.SeriesInstanceUID)
    uid = generate_uid()
    regions = [
        MarkedRegion("POLYLINE", _square(10), tracking_uid=uid),
        MarkedRegion("POLYLINE", _square(20), tracking_uid=uid, on=other),
    ]
    assert len(read(measurement_report_of(image, regions), image, other).lesions) == 2


@pytest.mark.parametrize(("tracking", "marked", "lesions"), [(True, (0, 2), 1), (False, (0, 2), 2), (False, (0, 1), 1)])
def test_a_segment_on_single_slices_is_one_lesion_if_it_says_so(
    tracking: bool, marked: tuple[int, ...], lesions: int
) -> None:
    """By its Tracking UID, or since it overlaps from one slice to the next."""
    stack = slices(3)
    segmentation = segmentation_of(mammogram(ROWS, COLUMNS, frames=3), np.stack([mask()] * 3)[None], tracking=tracking)
    kept = [segmentation.PerFrameFunctionalGroupsSequence[number] for number in marked]
    for number, group in zip(marked, kept, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = stack[number].SOPInstanceUID
        del source.ReferencedFrameNumber
    segmentation.PerFrameFunctionalGroupsSequence = kept
    assert len(read(segmentation, *stack).lesions) == lesions


# --- 8. another patient ---


@pytest.mark.parametrize(
    ("keyword", "value", "missing", "differs"),
    [
        ("PatientID", "OTHER", "", "Patient ID"),
        ("IssuerOfPatientID", "B", "", "Issuer of Patient ID"),
        ("PatientName", "Other^Person", "PatientID", "Patient's Name"),
        ("PatientBirthDate", "19700101", "PatientID", "Patient's Birth Date"),
        ("PatientName", "Other^Person", "", None),  # a name may change while the ID stays
        ("PatientName", "SYNTHETIC^PATIENT^^Dr", "PatientID", None),
        ("StudyInstanceUID", "1.2.3", "", None),
    ],
)
def test_a_lesion_object_of_another_patient_is_refused(
    image: Dataset, keyword: str, value: str, missing: str, differs: str | None
) -> None:
    image.IssuerOfPatientID, image.PatientBirthDate = "A", "19600101"
    source = copy.deepcopy(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]))  # it shares elements
    source.IssuerOfPatientID, source.PatientBirthDate = "A", "19600101"
    setattr(source, keyword, value)
    if missing:
        setattr(source, missing, "")
    if differs is None:
        assert len(read(source, image).lesions) == 1
        return
    with pytest.raises(LesionError, match=f"its patient is not that of image .*{differs}") as raised:
        read(source, image)
    assert value not in str(raised.value)


def test_another_frame_of_reference_is_a_reason_to_refuse() -> None:
    stack = mammogram(ROWS, COLUMNS, frames=2)
    segmentation = copy.deepcopy(segmentation_of(stack, np.stack([mask()] * 2)[None]))
    assert read(segmentation, stack).lesions
    segmentation.FrameOfReferenceUID = generate_uid()
    with pytest.raises(LesionError, match="frame of reference"):
        read(segmentation, stack)


def test_another_study_of_the_same_patient_is_said(image: Dataset) -> None:
    source = copy.deepcopy(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]))
    assert read(source, image).notes == ()
    source.StudyInstanceUID = generate_uid()
    (note,) = read(source, image).notes
    assert "another study" in note
