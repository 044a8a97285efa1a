"""The demo's cases against the files themselves."""

from __future__ import annotations

import importlib.util

import pydicom
import pytest

from config.errors import MammodError
from daemon.demo.cases import read_cases
from daemon.demo.sending import PLANS


def test_eight_images_with_ten_lesions_two_of_them_malignant() -> None:
    cases = read_cases()
    assert [case.name for case in cases] == ["1-130", "1-131", "1-132", "1-133", "1-280", "1-281", "1-282", "1-283"]
    assert [len(case.lesions) for case in cases] == [1, 1, 2, 2, 1, 1, 1, 1]
    malignant = {case.name for case in cases if any(lesion.malignant for lesion in case.lesions)}
    assert malignant == {"1-280", "1-281"}  # CBIS-DDSM: the left breast of P_00820


def test_the_table_names_the_files_that_are_there() -> None:
    for case in read_cases():
        header = pydicom.dcmread(case.path, stop_before_pixels=True)
        assert header.SOPInstanceUID == case.image_uid
        side = {"L": "LEFT", "R": "RIGHT"}[case.laterality]
        assert str(header.PatientID).endswith(f"{side}_{case.view}")
        for lesion in case.lesions:
            assert 0 <= lesion.left < lesion.right <= header.Columns
            assert 0 <= lesion.top < lesion.bottom <= header.Rows


def test_the_plan_covers_the_cases_with_both_kinds_some_before_their_image() -> None:
    cases = read_cases()
    assert {case.name: len(case.lesions) for case in cases} == {name: len(plan.shapes) for name, plan in PLANS.items()}
    assert all(len({shape.kind for shape in plan.shapes}) == 1 for plan in PLANS.values())
    for kind in ("SEG", "SR"):
        assert {plan.before_image for plan in PLANS.values() if plan.shapes[0].kind == kind} == {True, False}


def test_without_the_package_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MammodError, match=r"mammod\[demo\]"):
        read_cases()
