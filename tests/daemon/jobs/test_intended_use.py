"""Lesions, images and views that a bundle was not made for."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from daemon.jobs.intended_use import image_type_of, view_of, within_intended_use
from daemon.lesions.lesion import Code as LesionCode
from daemon.lesions.lesion import LesionReading
from daemon.reports.case import Algorithm
from daemon.reports.statements import lesion_statements
from tests.support import report_objects as objects
from tests.support.lesion_objects import mammogram

MASS = LesionCode("4147007", "SCT", "Mass")
CALCIFICATION = LesionCode("129748009", "SCT", "Calcification")
LESION = LesionCode("52988006", "SCT", "Lesion")


def algorithm(**limits: tuple[str, ...]) -> Algorithm:
    return Algorithm("a", "1", "1.2", True, 0.5, "Research", **limits)


def reading(image: Dataset, *findings: LesionCode) -> LesionReading:
    return LesionReading("1.2", tuple(objects.lesion(image, finding=finding) for finding in findings))


def test_a_lesion_of_another_kind_gets_no_probability() -> None:
    image = mammogram(80, 60)
    images = {str(image.SOPInstanceUID): image}
    marked = reading(image, MASS, CALCIFICATION, LESION)
    for_masses = algorithm(kinds=("mass",))
    found = within_intended_use(marked, images, for_masses, is_left_out=True)
    assert [lesion.finding for lesion in found.lesions] == [MASS, LESION]  # one that names no kind may be a mass
    assert "lesion 2" in found.left_out[0].what
    assert "outside the intended use of this model" in found.left_out[0].reason
    assert "calcification" in found.left_out[0].reason
    told = within_intended_use(marked, images, for_masses, is_left_out=False)
    assert len(told.lesions) == 3 and "outside the intended use" in told.notes[0]
    assert within_intended_use(marked, images, algorithm(), is_left_out=True).lesions == marked.lesions


@pytest.mark.parametrize(
    ("limits", "stays"),
    [
        ({"image_types": ("digital",)}, True),
        ({"image_types": ("film",)}, False),
        ({"views": ("CC", "MLO")}, True),
        ({"views": ("MLO",)}, False),
    ],
)
def test_image_type_and_view_are_held_against_the_manifest(limits: dict[str, tuple[str, ...]], stays: bool) -> None:
    image = mammogram(80, 60)
    found = within_intended_use(
        reading(image, MASS), {str(image.SOPInstanceUID): image}, algorithm(**limits), is_left_out=True
    )
    assert bool(found.lesions) == stays


def test_image_types_and_views_are_told_apart() -> None:
    image = mammogram(80, 60, view="MLO")
    assert (image_type_of(image), view_of(image)) == ("digital", "MLO")
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    assert image_type_of(image) == "film"
    stack = mammogram(80, 60, frames=2)
    assert image_type_of(stack) == "tomosynthesis"
    stack.ImageType = ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]
    assert image_type_of(stack) == "synthetic"


@pytest.mark.parametrize(
    ("modifier", "said"),
    [
        (Code("399163009", "SCT", "Magnification"), "magnification"),
        (Code("399209000", "SCT", "Implant Displaced"), "implant-displaced"),
    ],
)
def test_special_views_are_named(modifier: Code, said: str) -> None:
    image = mammogram(80, 60)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = modifier[:3]
    image.ViewCodeSequence[0].ViewModifierCodeSequence = [item]
    found = within_intended_use(reading(image, MASS), {str(image.SOPInstanceUID): image}, algorithm(), is_left_out=True)
    assert said in found.notes[0] and len(found.lesions) == 1


def test_a_report_says_that_only_a_point_was_marked() -> None:
    image = objects.mammogram()
    for kind, points, said in (("POINT", [(5, 5)], True), ("CIRCLE", [(5, 5), (5, 9)], False)):
        drawn = objects.result(objects.lesion(image, kind, points))
        assert any("Only a point" in line for line in lesion_statements(drawn, objects.TRAINED)) == said
