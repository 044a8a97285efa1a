"""Mammography CAD SR (TID 4000), built by hand after PS3.16 and PS3.17 annex E."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import References, lesion_references, read_lesions
from tests.support.lesion_objects import (
    CAD_ROOT,
    NOT_FOR_PRESENTATION,
    PRESENTATION_REQUIRED,
    RENDERING_INTENT,
    cad_report_of,
    code_item,
    container,
    image_item,
    mammogram,
    reference_item,
    report_by_hand,
    single_image_finding,
)

DENSITY = Code("129793001", "SCT", "Mammography breast density")
CLUSTER = Code("129769006", "SCT", "Calcification Cluster")
CALCIFICATION = Code("129770007", "SCT", "Individual Calcification")
COMPOSITE = Code("111015", "DCM", "Composite Feature")
MASS = Code("129788004", "SCT", "Mammographic breast mass")
SQUARE = [(10, 20), (30, 20), (30, 50), (10, 50), (10, 20)]


def box(points: np.ndarray) -> tuple[float, float, float, float]:
    return (*points.min(axis=0), *points.max(axis=0))


def sent(dataset: Dataset) -> Dataset:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(file.getvalue()))


def read(report: Dataset, *images: Dataset) -> LesionReading:
    return read_lesions(report, {str(image.SOPInstanceUID): image for image in images}, {}, Lesions())


@pytest.fixture(scope="module")
def views() -> tuple[Dataset, Dataset]:
    return mammogram(100, 80), mammogram(100, 80, view="MLO")


def test_findings_lie_on_the_image_that_the_library_names(views: tuple[Dataset, Dataset]) -> None:
    report = sent(
        cad_report_of(
            views,
            [
                single_image_finding(DENSITY, (1, 1, 2), center=(20, 35), outline=SQUARE),
                single_image_finding(DENSITY, (1, 1, 1), center=(40.5, 60.5)),
            ],
        )
    )
    assert lesion_references(report) == References((views[1].SOPInstanceUID, views[0].SOPInstanceUID), ())
    first, second = read(report, *views).lesions
    assert (first.image_uid, box(first.outline)) == (views[1].SOPInstanceUID, (10, 20, 30, 50))
    assert (second.image_uid, second.outline.tolist()) == (views[0].SOPInstanceUID, [[40.5, 60.5]])
    assert second.region.graphic_type == "POINT"
    assert first.finding is not None and first.finding.value == DENSITY.value


def test_findings_not_for_presentation_are_left_out(views: tuple[Dataset, Dataset]) -> None:
    report = sent(
        cad_report_of(
            views[:1],
            [
                single_image_finding(DENSITY, (1, 1, 1), outline=SQUARE, intent=NOT_FOR_PRESENTATION),
                single_image_finding(DENSITY, (1, 1, 1), center=(40, 60)),
            ],
        )
    )
    reading = read(report, views[0])
    assert [lesion.outline.tolist() for lesion in reading.lesions] == [[[40, 60]]]
    assert [left.reason for left in reading.left_out] == ["the report marks it as not for presentation"]


def test_a_report_of_nothing_to_present_is_an_empty_reading(views: tuple[Dataset, Dataset]) -> None:
    finding = single_image_finding(DENSITY, (1, 1, 1), outline=SQUARE, intent=NOT_FOR_PRESENTATION)
    report = sent(cad_report_of(views[:1], [finding]))
    assert lesion_references(report) == References((views[0].SOPInstanceUID,), ())
    reading = read(report, views[0])
    assert reading.lesions == () and len(reading.left_out) == 1


def test_what_hangs_under_something_hidden_is_hidden(views: tuple[Dataset, Dataset]) -> None:
    finding = single_image_finding(DENSITY, (1, 1, 1), outline=SQUARE, relationship="INFERRED FROM")
    hidden = code_item(
        COMPOSITE, MASS, children=[code_item(RENDERING_INTENT, NOT_FOR_PRESENTATION, "HAS CONCEPT MOD"), finding]
    )
    assert read(sent(cad_report_of(views[:1], [hidden])), views[0]).lesions == ()


def test_a_composite_feature_gives_the_finding_on_each_image_once(views: tuple[Dataset, Dataset]) -> None:
    composite = code_item(
        COMPOSITE,
        MASS,
        children=[
            code_item(RENDERING_INTENT, PRESENTATION_REQUIRED, "HAS CONCEPT MOD"),
            single_image_finding(DENSITY, (1, 1, 1), outline=SQUARE, relationship="INFERRED FROM"),
            # the impression is root.2.1, this composite its item 2, its last finding item 3
            reference_item((1, 2, 1, 3), "INFERRED FROM"),
        ],
    )
    other = single_image_finding(DENSITY, (1, 1, 2), outline=SQUARE)
    reading = read(sent(cad_report_of(views, [composite, other])), *views)
    assert [lesion.image_uid for lesion in reading.lesions] == [view.SOPInstanceUID for view in views]


def test_a_finding_kept_aside_is_shown_where_something_shown_refers_to_it(views: tuple[Dataset, Dataset]) -> None:
    kept_aside = code_item(
        COMPOSITE,
        MASS,
        children=[
            code_item(RENDERING_INTENT, NOT_FOR_PRESENTATION, "HAS CONCEPT MOD"),
            single_image_finding(DENSITY, (1, 1, 1), outline=SQUARE, relationship="INFERRED FROM"),
        ],
    )
    shown = code_item(
        COMPOSITE,
        MASS,
        children=[
            code_item(RENDERING_INTENT, PRESENTATION_REQUIRED, "HAS CONCEPT MOD"),
            reference_item((1, 2, 1, 2, 2), "INFERRED FROM"),
        ],
    )
    assert len(read(sent(cad_report_of(views[:1], [kept_aside, shown])), views[0]).lesions) == 1


def calcifications(*centers: tuple[float, float]) -> list[Dataset]:
    return [
        single_image_finding(CALCIFICATION, (1, 1, 1), center=center, relationship="INFERRED FROM")
        for center in centers
    ]


def test_a_cluster_is_one_lesion_with_its_own_outline(views: tuple[Dataset, Dataset]) -> None:
    cluster = single_image_finding(
        CLUSTER, (1, 1, 1), center=(20, 35), outline=SQUARE, parts=calcifications((12, 22), (28, 48), (20, 30))
    )
    (lesion,) = read(sent(cad_report_of(views[:1], [cluster])), views[0]).lesions
    assert box(lesion.outline) == (10, 20, 30, 50)
    assert lesion.finding is not None and lesion.finding.value == CLUSTER.value


def test_a_cluster_without_an_outline_is_the_hull_of_its_calcifications(views: tuple[Dataset, Dataset]) -> None:
    cluster = single_image_finding(
        CLUSTER, (1, 1, 1), center=(20, 35), parts=calcifications((12, 22), (28, 48), (20, 36), (12, 48))
    )
    (lesion,) = read(sent(cad_report_of(views[:1], [cluster])), views[0]).lesions
    assert {tuple(point) for point in lesion.outline} == {(12, 22), (28, 48), (12, 48)}
    assert lesion.region.graphic_type == "POLYLINE" and len(lesion.region.points) == 4


def test_outlined_calcifications_of_a_cluster_are_one_lesion(views: tuple[Dataset, Dataset]) -> None:
    outlined = [
        single_image_finding(
            CALCIFICATION, (1, 1, 1), outline=[(x, y), (x + 2, y), (x, y + 2), (x, y)], relationship="INFERRED FROM"
        )
        for x, y in ((10, 20), (40, 20), (10, 60))
    ]
    cluster = single_image_finding(CLUSTER, (1, 1, 1), parts=outlined)
    (lesion,) = read(sent(cad_report_of(views[:1], [cluster])), views[0]).lesions
    assert box(lesion.outline) == (10, 20, 42, 62)


def test_parts_of_a_cluster_by_reference_are_not_lesions_again(views: tuple[Dataset, Dataset]) -> None:
    # impression items: 1 intent, 2 and 3 the calcifications, 4 the cluster
    single = [single_image_finding(CALCIFICATION, (1, 1, 1), center=center) for center in ((12, 22), (28, 48))]
    cluster = single_image_finding(
        CLUSTER,
        (1, 1, 1),
        outline=SQUARE,
        parts=[reference_item((1, 2, 1, number), "INFERRED FROM") for number in (2, 3)],
    )
    (lesion,) = read(sent(cad_report_of(views[:1], [*single, cluster])), views[0]).lesions
    assert box(lesion.outline) == (10, 20, 30, 50)


def test_references_in_a_ring_end(views: tuple[Dataset, Dataset]) -> None:
    ring = [
        single_image_finding(
            DENSITY, (1, 1, 1), outline=SQUARE, parts=[reference_item((1, 2, 1, other), "INFERRED FROM")]
        )
        for other in (3, 2)
    ]
    assert len(read(sent(cad_report_of(views[:1], ring)), views[0]).lesions) == 2


def test_breast_geometry_is_not_a_lesion(views: tuple[Dataset, Dataset]) -> None:
    geometry = single_image_finding(Code("111100", "DCM", "Breast geometry"), (1, 1, 1), outline=SQUARE)
    reading = read(sent(cad_report_of(views[:1], [geometry])), views[0])
    assert reading.lesions == () and "DCM:111100" in reading.left_out[0].reason


def test_a_report_without_findings_is_no_lesion_object(views: tuple[Dataset, Dataset]) -> None:
    assert lesion_references(sent(cad_report_of(views, []))) is None


@pytest.mark.parametrize("path", [(1, 1, 9), (1, 2), (9,)])
def test_a_reference_to_no_image_is_refused(views: tuple[Dataset, Dataset], path: tuple[int, ...]) -> None:
    report = sent(cad_report_of(views, [single_image_finding(DENSITY, path, outline=SQUARE)]))
    with pytest.raises(LesionError, match="no image, or several"):
        lesion_references(report)


def test_old_snomed_codes_and_other_cad_trees_are_read(views: tuple[Dataset, Dataset]) -> None:
    """A finding straight under the root, coded as the first products did."""
    library = container(Code("111028", "DCM", "Image Library"), [image_item(views[0], relationship="CONTAINS")])
    finding = single_image_finding(Code("F-01796", "SRT", "Mammography breast density"), (1, 1, 1), outline=SQUARE)
    report = sent(
        report_by_hand(views[:1], [library, finding], root=CAD_ROOT, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.50")
    )
    (lesion,) = read(report, views[0]).lesions
    assert lesion.finding is not None and (lesion.finding.value, lesion.finding.scheme) == ("F-01796", "SRT")
