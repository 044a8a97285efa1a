"""TID 1500 reports: highdicom's own, and by hand the nestings of dcmqi and of OHIF."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import References, lesion_references, read_lesions
from tests.support.lesion_objects import (
    BREAST,
    CALCIFICATION,
    MASS,
    MarkedRegion,
    code_item,
    container,
    image_item,
    item,
    mammogram,
    measurement_report_of,
    report_by_hand,
    scoord,
    segmentation_of,
    structured_report,
)

GROUP = Code("125007", "DCM", "Measurement Group")
MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
FINDING = Code("121071", "DCM", "Finding")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
LEFT = Code("7771000", "SCT", "Left")
AREA = Code("42798000", "SCT", "Area")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
REFERENCED_SEGMENT = Code("121191", "DCM", "Referenced Segment")
SEGMENTATION_SOURCE = Code("121233", "DCM", "Source image for segmentation")
SQUARE = [(10, 20), (30, 20), (30, 50), (10, 50), (10, 20)]


def box(points: np.ndarray) -> tuple[float, float, float, float]:
    """left, top, right, bottom"""
    return (*points.min(axis=0), *points.max(axis=0))


def sent(dataset: Dataset) -> Dataset:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(file.getvalue()))


def read(report: Dataset, *images: Dataset, segmentations: Sequence[Dataset] = ()) -> LesionReading:
    return read_lesions(
        report,
        {str(image.SOPInstanceUID): image for image in images},
        {str(segmentation.SOPInstanceUID): segmentation for segmentation in segmentations},
        Lesions(),
    )


def by_hand(images: Sequence[Dataset], *groups: Sequence[Dataset]) -> Dataset:
    return sent(report_by_hand(images, [container(MEASUREMENTS, [container(GROUP, children) for children in groups])]))


def measurement(name: Code, children: Sequence[Dataset]) -> Dataset:
    return item("NUM", name, "CONTAINS", children, MeasuredValueSequence=[])


@pytest.fixture(scope="module")
def image() -> Dataset:
    return mammogram(100, 80)


@pytest.mark.parametrize(
    ("graphic_type", "points", "expected"),
    [
        ("POINT", [(33.5, 44.25)], (33.5, 44.25, 33.5, 44.25)),
        ("POLYLINE", SQUARE, (10, 20, 30, 50)),
        ("CIRCLE", [(40, 50), (43, 54)], (35, 45, 45, 55)),
        ("ELLIPSE", [(20, 50), (60, 50), (40, 40), (40, 60)], (20, 40, 60, 60)),
    ],
)
def test_every_graphic_type_of_a_highdicom_report(
    image: Dataset, graphic_type: str, points: list[tuple[float, float]], expected: tuple[float, ...]
) -> None:
    report = sent(measurement_report_of(image, [MarkedRegion(graphic_type, points)]))
    assert lesion_references(report) == References((image.SOPInstanceUID,), ())
    (lesion,) = read(report, image).lesions
    assert box(lesion.outline) == pytest.approx(expected, abs=0.1)
    assert lesion.region.graphic_type == graphic_type
    assert lesion.region.points == pytest.approx(np.array(points))


def test_a_tilted_ellipse_is_drawn_as_a_polygon(image: Dataset) -> None:
    centre, along, across = np.array([40, 50]), np.array([16, 12]), np.array([-6, 8])  # half axes of 20 and 10
    ends = np.array([centre - along, centre + along, centre - across, centre + across])
    (lesion,) = read(sent(measurement_report_of(image, [MarkedRegion("ELLIPSE", ends.tolist())])), image).lesions
    assert lesion.region.graphic_type == "POLYLINE"
    points = lesion.region.points
    assert len(points) > 16 and (points[0] == points[-1]).all()
    share = [(points - centre) @ axis / (axis @ axis) for axis in (along, across)]
    assert np.hypot(*share) == pytest.approx(1, abs=1e-6)


def test_what_a_group_says_of_its_lesion_is_read(image: Dataset) -> None:
    uids = [generate_uid(), generate_uid()]
    regions = [
        MarkedRegion("POLYLINE", SQUARE, laterality=LEFT, tracking_id="mass one", tracking_uid=uids[0]),
        MarkedRegion("POINT", [(60, 60)], finding=CALCIFICATION, finding_site=None, tracking_uid=uids[1]),
    ]
    first, second = read(sent(measurement_report_of(image, regions)), image).lesions
    assert (first.tracking_id, first.tracking_uid) == ("mass one", uids[0])
    assert (second.tracking_id, second.tracking_uid) == ("lesion", uids[1])
    assert first.finding is not None and (first.finding.value, first.finding.scheme) == ("4147007", "SCT")
    assert first.finding_site is not None and first.finding_site.value == "76752008"
    assert first.laterality is not None and first.laterality.value == "7771000"
    assert second.finding is not None and second.finding.value == "129748009"
    assert second.finding_site is None and second.laterality is None
    assert first.source_uid == second.source_uid


def test_a_region_keeps_the_frame_it_names() -> None:
    stack = mammogram(100, 80, frames=4)
    (lesion,) = read(sent(measurement_report_of(stack, [MarkedRegion("POLYLINE", SQUARE, frame=3)])), stack).lesions
    assert lesion.frame == 3


@pytest.mark.parametrize(("frame", "reason"), [(5, "frame 5 is named of image"), (None, "no frame is named of image")])
def test_a_frame_that_is_wrong_or_missing_is_refused(frame: int | None, reason: str) -> None:
    stack = mammogram(100, 80, frames=4)
    report = by_hand([stack], [scoord("POLYLINE", SQUARE, [image_item(stack, frame=frame)])])
    with pytest.raises(LesionError, match=reason):
        read(report, stack)


def test_of_several_frames_the_middle_one_is_taken_and_said_so() -> None:
    stack = mammogram(100, 80, frames=9)
    selected = image_item(stack)
    selected.ReferencedSOPSequence[0].ReferencedFrameNumber = [4, 5, 6, 7, 8]
    reading = read(by_hand([stack], [scoord("POLYLINE", SQUARE, [selected])]), stack)
    assert [lesion.frame for lesion in reading.lesions] == [6]
    assert "middle one, 6" in reading.left_out[0].reason


# --- regions under measurements, as OHIF writes them ---


@pytest.mark.filterwarnings("ignore:The value length")  # OHIF's stand-in code is longer than its VR allows
def test_a_region_under_its_measurements_is_one_lesion(image: Dataset) -> None:
    region = [scoord("POLYLINE", SQUARE, [image_item(image)], name=None, relationship="INFERRED FROM")]
    report = by_hand(
        [image],
        [
            item(
                "TEXT", Code("112039", "DCM", "Tracking Identifier"), "HAS OBS CONTEXT", TextValue="Tools:RectangleROI"
            ),
            item("UIDREF", Code("112040", "DCM", "Tracking Unique Identifier"), "HAS OBS CONTEXT", UID="1.2.3.4"),
            code_item(FINDING, Code("CORNERSTONEFREETEXT", "CORNERSTONEJS", "spiky thing")),
            code_item(FINDING_SITE, BREAST, children=[code_item(LATERALITY, LEFT, "HAS CONCEPT MOD")]),
            measurement(AREA, region),
            measurement(Code("131191004", "SCT", "Perimeter"), region),
        ],
    )
    (lesion,) = read(report, image).lesions
    assert box(lesion.outline) == (10, 20, 30, 50)
    assert (lesion.tracking_id, lesion.tracking_uid) == ("Tools:RectangleROI", "1.2.3.4")
    assert lesion.finding is None  # words, not a code
    assert lesion.laterality is not None and lesion.laterality.value == "7771000"


def test_two_crossing_axes_are_one_lesion_of_their_hull(image: Dataset) -> None:
    def axis(name: Code, *points: tuple[float, float]) -> Dataset:
        return measurement(
            name, [scoord("POLYLINE", points, [image_item(image)], name=None, relationship="INFERRED FROM")]
        )

    report = by_hand([image], [axis(LONG_AXIS, (10, 50), (50, 50)), axis(SHORT_AXIS, (30, 40), (30, 60))])
    (lesion,) = read(report, image).lesions
    assert {tuple(point) for point in lesion.outline} == {(10, 50), (30, 40), (50, 50), (30, 60)}
    assert lesion.region.graphic_type == "POLYLINE" and len(lesion.region.points) == 5


def test_a_closed_region_goes_before_lines_in_its_group(image: Dataset) -> None:
    line = scoord("POLYLINE", [(0, 0), (79, 99)], [image_item(image)], relationship="INFERRED FROM")
    report = by_hand([image], [scoord("POLYLINE", SQUARE, [image_item(image)]), measurement(LONG_AXIS, [line])])
    (lesion,) = read(report, image).lesions
    assert box(lesion.outline) == (10, 20, 30, 50)


def test_several_closed_regions_of_a_group_are_told_apart(image: Dataset) -> None:
    other = [(40, 20), (60, 20), (60, 50), (40, 20)]
    report = by_hand(
        [image],
        [
            item("TEXT", Code("112039", "DCM", "Tracking Identifier"), "HAS OBS CONTEXT", TextValue="both"),
            item("UIDREF", Code("112040", "DCM", "Tracking Unique Identifier"), "HAS OBS CONTEXT", UID="1.2.3.4"),
            *(scoord("POLYLINE", points, [image_item(image)]) for points in (SQUARE, other)),
        ],
    )
    lesions = read(report, image).lesions
    assert [(lesion.tracking_id, lesion.tracking_uid) for lesion in lesions] == [("both (1)", None), ("both (2)", None)]


def test_an_image_named_beside_the_region_is_its_image(image: Dataset) -> None:
    report = by_hand([image], [scoord("POLYLINE", SQUARE, []), image_item(image, relationship="CONTAINS")])
    assert lesion_references(report) == References((image.SOPInstanceUID,), ())
    assert len(read(report, image).lesions) == 1


def test_several_images_beside_a_region_are_no_image(image: Dataset) -> None:
    other = mammogram(100, 80)
    report = by_hand(
        [image, other],
        [scoord("POLYLINE", SQUARE, []), *(image_item(each, relationship="CONTAINS") for each in (image, other))],
    )
    with pytest.raises(LesionError, match="no image, or several"):
        lesion_references(report)


def test_points_of_one_lesion_become_their_hull_and_a_region_that_a_report_may_draw(image: Dataset) -> None:
    points = [(10, 10), (30, 10), (20, 15), (30, 40), (10, 40)]
    (lesion,) = read(by_hand([image], [scoord("MULTIPOINT", points, [image_item(image)])]), image).lesions
    assert box(lesion.outline) == (10, 10, 30, 40) and len(lesion.outline) == 4
    assert lesion.region.graphic_type == "POLYLINE"


def test_nested_groups_are_lesions_of_their_own(image: Dataset) -> None:
    other = [(40, 20), (60, 20), (60, 50), (40, 20)]
    report = by_hand(
        [image],
        [
            scoord("POLYLINE", SQUARE, [image_item(image)]),
            container(GROUP, [scoord("POLYLINE", other, [image_item(image)])]),
        ],
    )
    assert [box(lesion.outline) for lesion in read(report, image).lesions] == [(10, 20, 30, 50), (40, 20, 60, 50)]


# --- regions by reference to a segment ---


def masks() -> list[np.ndarray]:
    result = []
    for top, left, bottom, right in ((10, 5, 20, 9), (30, 40, 41, 50)):
        mask = np.zeros((100, 80), np.uint8)
        mask[top:bottom, left:right] = 1
        result.append(mask)
    return result


def test_a_highdicom_group_with_a_referenced_segment_takes_its_outline(image: Dataset) -> None:
    segmentation = sent(segmentation_of(image, masks()))
    uid = generate_uid()
    group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=uid, identifier="second"),
        referenced_segment=hd.sr.ReferencedSegmentationFrame.from_segmentation(
            hd.seg.Segmentation.from_dataset(segmentation),
            segment_number=2,
            frame_number=2,
        ),
        finding_type=CALCIFICATION,
    )
    report = sent(structured_report(image, [group], evidence=[segmentation]))
    assert lesion_references(report) == References((image.SOPInstanceUID,), (segmentation.SOPInstanceUID,))
    (lesion,) = read(report, image, segmentations=[segmentation]).lesions
    assert box(lesion.outline) == (40, 30, 50, 41)
    assert lesion.source_uid == report.SOPInstanceUID
    assert (lesion.tracking_id, lesion.tracking_uid) == ("second", uid)
    assert lesion.finding is not None and lesion.finding.value == "129748009"
    assert lesion.finding_site is not None and lesion.finding_site.value == "76752008"  # the segment's


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_dcmqi_group_names_segment_and_source_image(image: Dataset, kind: str) -> None:
    segmentation = sent(segmentation_of(image, masks(), kind))
    report = by_hand(
        [image, segmentation],
        [
            code_item(FINDING, MASS),
            image_item(segmentation, relationship="CONTAINS", name=REFERENCED_SEGMENT, segment=1),
            image_item(image, relationship="CONTAINS", name=SEGMENTATION_SOURCE),
            measurement(AREA, []),
        ],
    )
    assert lesion_references(report) == References((image.SOPInstanceUID,), (segmentation.SOPInstanceUID,))
    (lesion,) = read(report, image, segmentations=[segmentation]).lesions
    assert box(lesion.outline) == (5, 10, 9, 20)


def test_a_segment_without_its_source_image_still_names_the_segmentation(image: Dataset) -> None:
    segmentation = sent(segmentation_of(image, masks()))
    report = by_hand([image], [image_item(segmentation, relationship="CONTAINS", name=REFERENCED_SEGMENT, segment=1)])
    assert lesion_references(report) == References((), (segmentation.SOPInstanceUID,))
    assert len(read(report, image, segmentations=[segmentation]).lesions) == 1


def test_missing_segments_and_segmentations_are_told(image: Dataset) -> None:
    segmentation = sent(segmentation_of(image, masks()))
    report = by_hand([image], [image_item(segmentation, relationship="CONTAINS", name=REFERENCED_SEGMENT, segment=7)])
    with pytest.raises(LesionError, match=r"segment 7: the segmentation has no such segment"):
        read(report, image, segmentations=[segmentation])
    with pytest.raises(LesionError, match=f"segmentation {segmentation.SOPInstanceUID} is not here"):
        read(report, image)


# --- what is left out and what is refused ---


def test_a_group_about_anatomy_is_left_out(image: Dataset) -> None:
    report = sent(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE, finding=BREAST)]))
    reading = read(report, image)
    assert reading.lesions == ()
    assert "SCT:76752008 is listed as not a lesion" in reading.left_out[0].reason


def test_a_bad_group_costs_only_itself(image: Dataset) -> None:
    outside = [(10, 20), (30, 20), (30, 150), (10, 20)]
    regions = [MarkedRegion("POLYLINE", SQUARE), MarkedRegion("POLYLINE", outside)]
    reading = read(sent(measurement_report_of(image, regions)), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(10, 20, 30, 50)]
    assert "row 150 lies outside the image of 80 columns and 100 rows" in reading.left_out[0].reason


def test_where_nothing_can_be_read_every_reason_is_told(image: Dataset) -> None:
    outside = [(10, 20), (30, 20), (30, 150), (10, 20)]
    report = by_hand(
        [image],
        [scoord("POLYLINE", outside, [image_item(image)])],
        [scoord("CIRCLE", [(4, 4), (4, 4)], [image_item(image)])],
    )
    with pytest.raises(LesionError, match=r"outside the image.*; .*without extent"):
        read(report, image)


def test_a_region_on_an_image_that_is_not_here_names_it(image: Dataset) -> None:
    report = sent(measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]))
    with pytest.raises(LesionError, match=f"image {image.SOPInstanceUID} is not here"):
        read(report)


def test_a_region_in_space_is_refused_with_what_is_expected(image: Dataset) -> None:
    region = item(
        "SCOORD3D",
        Code("111030", "DCM", "Image Region"),
        GraphicType="POLYGON",
        GraphicData=[1.0, 2, 3, 4, 5, 6, 1, 2, 3],
        ReferencedFrameOfReferenceUID="1.2.3",
    )
    with pytest.raises(LesionError, match="expected one in image pixels"):
        lesion_references(by_hand([image], [region]))
    report = by_hand([image], [region], [scoord("POLYLINE", SQUARE, [image_item(image)])])
    reading = read(report, image)
    assert len(reading.lesions) == 1 and "SCOORD3D" in reading.left_out[0].reason


def test_a_report_without_a_region_is_no_lesion_object(image: Dataset) -> None:
    report = by_hand([image], [measurement(AREA, []), image_item(image, relationship="CONTAINS")])
    assert lesion_references(report) is None


def test_images_and_other_objects_are_no_lesion_objects(image: Dataset) -> None:
    assert lesion_references(image) is None
    assert lesion_references(Dataset()) is None
