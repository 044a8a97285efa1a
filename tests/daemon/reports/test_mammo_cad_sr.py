"""What a Mammography CAD SR says, by PS3.16 TID 4000; our own reader finds the same lesions in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from config.settings import NOT_LESION_CODES
from daemon.errors import ReportError
from daemon.jobs.pipeline import Classified, Inputs, Pipeline
from daemon.lesions.geometry import outline_of_region
from daemon.lesions.lesion import Lesion, LesionReading, Region
from daemon.lesions.reader import lesion_references, read_lesions
from tests.support import report_objects as b
from tests.support.report_cases import read

FINDING, CENTER, OUTLINE, INTENT, PROBABILITY = "111059", "111010", "111041", "111056", "111047"
LATERALITY, VIEW = "111027", "111031"


def report(results: list[Any], *images: Dataset, **more: Any) -> Dataset:
    (made,) = b.reports("mammo-cad-sr", results, *images, **more)
    return b.reread(made)


def at(root: Dataset, path: list[int]) -> Dataset:
    """The content item of a Referenced Content Item Identifier (PS3.3 C.17.3)."""
    item = root
    for number in path[1:]:
        item = item.ContentSequence[number - 1]
    return item


def test_the_document_is_a_preliminary_unverified_research_cad_report() -> None:
    made = read("polyline", "mammo-cad-sr")
    assert made.SOPClassUID == made.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.50"
    assert made.ConceptNameCodeSequence[0].CodeValue == "111036"
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "4000"
    flags = made.ContentQualification, made.VerificationFlag, made.PreliminaryFlag
    assert flags == ("RESEARCH", "UNVERIFIED", "PRELIMINARY")
    assert made.SeriesDescription.startswith("RESEARCH ONLY")
    (said,) = b.texts(made, "111033")
    assert said.startswith("RESEARCH USE ONLY")
    assert "Finding A: called malignant." in said
    assert b.uid("source", "lesions") in said
    assert made.PatientID == "P-1"


def test_it_says_which_detections_and_analyses_were_done() -> None:
    made = read("polyline", "mammo-cad-sr")
    assert b.meanings(made, "111017") == ["All algorithms succeeded; with findings"]
    assert b.meanings(made, "111064") == ["Not Attempted"]
    assert b.meanings(made, "111065") == ["Succeeded"]
    (analyses,) = b.items(made, "111062")
    (analysis,) = b.items(analyses, "111004")
    assert analysis.ConceptCodeSequence[0].CodeValue == "111233"
    assert b.texts(analysis, "111001") == ["Xception-C"]
    (reference,) = [item for item in analysis.ContentSequence if "ReferencedContentItemIdentifier" in item]
    assert at(made, reference.ReferencedContentItemIdentifier).ValueType == "IMAGE"


def test_the_image_library_gives_laterality_view_and_pixels() -> None:
    made = read("several images", "mammo-cad-sr")
    (library,) = b.items(made, "111028")
    entries = library.ContentSequence
    uids = [entry.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for entry in entries]
    assert uids == [b.uid("image", name) for name in ("rcc", "lmlo", "prior")]
    assert b.meanings(library, LATERALITY) == ["Right breast", "Left breast", "Right breast"]
    assert b.meanings(library, VIEW) == ["cranio-caudal", "medio-lateral oblique", "cranio-caudal"]
    numbers = [b.items(entries[0], code)[0].MeasuredValueSequence[0].NumericValue for code in ("110910", "111026")]
    assert numbers == [3328, 0.07]
    assert [b.items(entries[0], code)[0].get(name) for code, name in (("111060", "Date"), ("111061", "Time"))] == [
        "20240301",
        "101112",
    ]


def test_a_finding_has_probability_centre_outline_and_intent() -> None:
    image = b.mammogram()
    made = report([b.result(b.lesion(image, finding=b.MASS, tracking_id="A", tracking_uid="1.2.3.4"))], image)
    (finding,) = b.items(made, FINDING)
    assert finding.ConceptCodeSequence[0].CodeValue == "129793001"  # what CID 6014 has for a mass
    assert [item.ConceptCodeSequence[0].CodeValue for item in b.items(made, INTENT)] == ["111150", "111150"]
    assert (b.texts(finding, "112039"), b.items(finding, "112040")[0].UID) == (["A"], "1.2.3.4")
    (number,) = b.items(finding, PROBABILITY)
    assert number.MeasuredValueSequence[0].NumericValue == 87.12
    assert number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "%"
    (centre,), (outline,) = b.items(finding, CENTER), b.items(finding, OUTLINE)
    assert (centre.GraphicType, list(centre.GraphicData)) == ("POINT", [140.5, 245.5])
    assert outline.GraphicData == [value for point in b.SQUARE for value in point]
    for shape in (centre, outline):
        (selected,) = shape.ContentSequence
        assert selected.RelationshipType == "SELECTED FROM"
        entry = at(made, selected.ReferencedContentItemIdentifier)
        assert entry.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_a_lesion_is_called_what_its_source_calls_it() -> None:
    image = b.mammogram()
    made = report([b.result(b.lesion(image, finding=code)) for code in (b.CALCIFICATION, None)], image)
    assert b.meanings(made, FINDING) == ["Calcification Cluster", "Lesion"]


def test_frames_are_entries_of_the_library() -> None:
    (library,) = b.items(read("frames", "mammo-cad-sr"), "111028")
    numbers = [entry.ReferencedSOPSequence[0].ReferencedFrameNumber for entry in library.ContentSequence]
    assert numbers == [17, 60]


def test_every_kind_gives_a_lesion_the_same_tracking_uid() -> None:
    uids = [[item.UID for item in b.items(read("many", kind), "112040")] for kind in ("tid1500", "mammo-cad-sr")]
    assert uids[0] == uids[1]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"ImageLaterality": None}, "laterality"),
        ({"ViewPosition": None}, "view"),
        ({"ImageLaterality": None, "ViewPosition": None}, "laterality and view"),
    ],
)
def test_an_image_without_laterality_or_view_is_refused(changes: dict[str, None], missing: str) -> None:
    image = b.mammogram(**changes)
    with pytest.raises(ReportError, match=f"needs the {missing} of image"):
        report([b.result(b.lesion(image))], image)


def test_a_film_that_holds_its_view_as_patient_orientation_is_not_refused() -> None:
    made = read("view as orientation", "mammo-cad-sr")
    assert (b.meanings(made, LATERALITY), b.meanings(made, VIEW)) == (["Left breast"], ["cranio-caudal"])
    assert b.items(made, "111044") == []


def test_the_other_kinds_go_on_where_it_is_refused() -> None:
    image = b.bare_mammogram()
    source = b.source()
    result = b.result(b.lesion(image))
    unused: Any = None
    made = Pipeline(unused, unused, b.TRAINED, b.BUNDLE).write(
        Inputs(source, {str(image.SOPInstanceUID): image}, {}, Path("unused"), {}),
        Classified(LesionReading(str(source.SOPInstanceUID), (result.lesion,)), (result,), "digest"),
        ["mammo-cad-sr", "tid1500"],
        lambda _: (),
    )
    assert [item.kind for item in made.written] == ["tid1500"]
    assert "laterality and view" in made.refused["mammo-cad-sr"]


@pytest.mark.parametrize(
    ("graphic_type", "points"),
    [("POLYLINE", [(1, 2)]), ("CIRCLE", [(1, 2)]), ("ELLIPSE", [(1, 2), (3, 4)]), ("SQUARE", [(1, 2), (3, 4)])],
)
def test_a_region_that_its_type_does_not_allow_is_refused(graphic_type: str, points: Any) -> None:
    image = b.mammogram()
    with pytest.raises(ReportError, match=graphic_type):
        report([b.result(b.lesion(image, graphic_type, points))], image)


# --- read back

ROWS, COLUMNS = 3328, 2560
POINT = st.tuples(st.floats(0, COLUMNS, width=32), st.floats(0, ROWS, width=32))


def _apart(points: list[tuple[float, float]]) -> bool:
    return len(set(points)) == len(points)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    graphic_type = draw(st.sampled_from(sorted(b.REGIONS)))
    if graphic_type == "POLYLINE":
        points = draw(st.lists(POINT, min_size=2, max_size=60).filter(_apart))
        if len(points) > 2 and draw(st.booleans()):
            points = [*points, points[0]]
    elif graphic_type == "MULTIPOINT":
        points = draw(st.lists(POINT, min_size=2, max_size=20).filter(_apart))
    else:
        count = {"POINT": 1, "CIRCLE": 2, "ELLIPSE": 4}[graphic_type]
        points = draw(st.lists(POINT, min_size=count, max_size=count).filter(_apart))
    return Region(graphic_type, np.array(points, dtype=np.float64))


@settings(max_examples=40, deadline=None)
@given(st.lists(regions(), min_size=1, max_size=4))
def test_our_own_reader_finds_the_same_outlines(drawn: list[Region]) -> None:
    image = b.mammogram()
    lesions = [
        Lesion(b.uid("source"), str(image.SOPInstanceUID), 1, outline_of_region(region, ROWS, COLUMNS), region)
        for region in drawn
    ]
    made = report([b.result(each) for each in lesions], image)
    references = lesion_references(made)
    assert references is not None and references.image_uids == (image.SOPInstanceUID,)
    found = read_lesions(made, {str(image.SOPInstanceUID): image}, {}, NOT_LESION_CODES).lesions
    assert len(found) == len(lesions)
    for read_again, lesion in zip(found, lesions, strict=True):
        assert np.array_equal(read_again.outline, lesion.outline)
