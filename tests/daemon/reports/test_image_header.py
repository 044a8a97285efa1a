"""Facts from image headers, ordinary and odd; expected values from the standard's attribute definitions."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from daemon.reports import image_header
from tests.support import report_objects as b


def dataset(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def code(value: str, meaning: str, scheme: str = "SCT", **more: Any) -> Dataset:
    return dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning, **more)


@pytest.mark.parametrize(
    ("header", "meaning"),
    [
        ({"ImageLaterality": "L"}, "Left"),
        ({"ImageLaterality": "R", "Laterality": "L"}, "Right"),
        ({"ImageLaterality": "", "Laterality": "L"}, "Left"),
        ({"ImageLaterality": "B"}, "Right and left"),
        ({"ImageLaterality": "U"}, None),
        ({}, None),
    ],
)
def test_laterality(header: dict[str, str], meaning: str | None) -> None:
    found = image_header.laterality(dataset(**header))
    assert (found and found.meaning) == meaning


def test_laterality_and_spacing_of_an_enhanced_image() -> None:
    shared = dataset(
        FrameAnatomySequence=[dataset(FrameLaterality="R")],
        PixelMeasuresSequence=[dataset(PixelSpacing=["0.1", "0.11"])],
    )
    image = dataset(SharedFunctionalGroupsSequence=[shared])
    assert image_header.laterality(image) == image_header.RIGHT
    assert image_header.pixel_spacing(image) == (0.1, 0.11)


@pytest.mark.parametrize(
    ("position", "concept"),
    [
        ("CC", codes.cid4014.CranioCaudal),
        ("MLO", codes.cid4014.MedioLateralObliqueProjection),
        ("ML", codes.cid4014.MedioLateralProjection),
        ("LM", codes.cid4014.LateroMedial),
        ("LMO", codes.cid4014.LateroMedialOblique),
        ("FB", codes.cid4014.CaudoCranial),
        ("SIO", codes.cid4014.SuperolateralToInferomedialOblique),
        ("ISO", codes.cid4014.InferomedialToSuperolateralOblique),
        ("XCCL", codes.cid4014.CranioCaudalExaggeratedLaterally),
        ("XCCM", codes.cid4014.CranioCaudalExaggeratedMedially),
    ],
)
def test_view_positions_are_codes_of_cid_4014(position: str, concept: Any) -> None:
    for header in ({"ViewPosition": position}, {"PatientOrientation": position}):
        found = image_header.view(dataset(**header))
        assert found is not None
        assert (found.value, found.scheme) == (concept.value, concept.scheme_designator)


def test_the_view_code_wins_and_brings_its_modifiers() -> None:
    magnified = code("399163009", "Magnification")
    image = dataset(
        ViewCodeSequence=[code("399368009", "MLO", ViewModifierCodeSequence=[magnified])], ViewPosition="CC"
    )
    assert image_header.view(image) == image_header.Code("399368009", "SCT", "MLO")
    assert [each.meaning for each in image_header.view_modifiers(image)] == ["Magnification"]


@pytest.mark.parametrize(
    "header", [{}, {"ViewPosition": ""}, {"PatientOrientation": ["A", "F"]}, {"ViewPosition": "AP"}]
)
def test_no_view(header: dict[str, Any]) -> None:
    assert image_header.view(dataset(**header)) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["P", "L"], ("P", "L")),
        (["A", "FR"], ("A", "FR")),
        ("", None),
        ("CC", None),
        (["", ""], None),
        (["P", ""], None),
    ],
)
def test_orientation(value: Any, expected: tuple[str, str] | None) -> None:
    assert image_header.orientation(b.as_read(b.mammogram(PatientOrientation=value))) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"ImagerPixelSpacing": ["0.07", "0.08"]}, (0.07, 0.08)),
        ({"PixelSpacing": ["0.05", "0.06"], "ImagerPixelSpacing": ["0.07", "0.07"]}, (0.05, 0.06)),
        ({"NominalScannedPixelSpacing": ["0.0435", "0.0435"]}, (0.0435, 0.0435)),
        ({"PixelSpacing": ["0", "0"], "ImagerPixelSpacing": ["0.07", "0.07"]}, (0.07, 0.07)),
        ({"PixelSpacing": "0.05"}, None),
        ({"PixelSpacing": ""}, None),
        ({}, None),
    ],
)
def test_pixel_spacing(header: dict[str, Any], expected: tuple[float, float] | None) -> None:
    assert image_header.pixel_spacing(dataset(**header)) == expected


def test_an_attribute_that_cannot_be_read_says_nothing() -> None:
    image = b.mammogram_of_bytes({0x00181164: b"seven\\seven ", 0x00280008: b"many", 0x00200060: b"\xff\xfe"})
    assert image_header.pixel_spacing(image) is None
    assert image_header.frames(image) == 1
    assert image_header.laterality(image) == image_header.RIGHT
    assert image_header.size(dataset(Rows=10)) is None


def test_codes_need_all_three_parts() -> None:
    assert image_header.procedures(dataset()) == []
    halves = [dataset(CodeValue="1"), dataset(CodeMeaning="x", CodingSchemeDesignator="y"), code("1", "One", "99A")]
    assert [each.meaning for each in image_header.procedures(dataset(ProcedureCodeSequence=halves))] == ["One"]


def test_patients_are_compared_without_insignificant_spaces() -> None:
    one, other = b.mammogram(PatientID="7"), b.mammogram_of_bytes({0x00100020: b" 7  "})
    assert image_header.patient_key(one) == image_header.patient_key(other)
    assert image_header.patient_key(one) != image_header.patient_key(b.mammogram(PatientID="7", IssuerOfPatientID="B"))


def test_what_shows_a_breast() -> None:
    assert image_header.shows_breast(dataset(Modality="MG"))
    assert image_header.shows_breast(dataset(Modality="CR", BodyPartExamined="BREAST"))
    assert not image_header.shows_breast(dataset(Modality="CR", BodyPartExamined="CHEST"))
    assert not image_header.shows_breast(dataset())
