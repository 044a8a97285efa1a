"""Lesion objects of the demo, read again by pydicom and highdicom, and validated by dicom3tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from daemon.demo.cases import Case, read_cases
from daemon.demo.lesion_objects import Shape, build
from tests.support.peers.programs import dciodvfy

CASES = {case.name: case for case in read_cases()}
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyID")


def header(case: Case) -> Dataset:
    return pydicom.dcmread(case.path, stop_before_pixels=True)


def shapes(kind: str, *forms: str) -> Sequence[Shape]:
    return [Shape(kind, form) for form in forms]


def boxes(case: Case) -> list[tuple[float, float, float, float]]:
    return [(lesion.left, lesion.top, lesion.right, lesion.bottom) for lesion in case.lesions]


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_segments_fill_the_known_boxes() -> None:
    case = CASES["1-133"]
    built = build(case, header(case), shapes("SEG", "ellipse", "box"))
    frames = {
        int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber): mask
        for frame, mask in zip(built.PerFrameFunctionalGroupsSequence, built.pixel_array, strict=True)
    }
    assert [bounding_box(frames[number]) for number in (1, 2)] == boxes(case)
    (left, top, right, bottom), _ = boxes(case)
    assert frames[1].sum() == pytest.approx(np.pi / 4 * (right - left) * (bottom - top), rel=0.005)
    left, top, right, bottom = (int(edge) for edge in boxes(case)[1])
    assert frames[2].sum() == (right - left) * (bottom - top)


def test_a_segmentation_names_its_image_and_its_lesions(tmp_path: Path) -> None:
    case = CASES["1-133"]
    build(case, header(case), shapes("SEG", "ellipse", "box")).save_as(tmp_path / "seg.dcm")
    read = hd.seg.segread(tmp_path / "seg.dcm")
    assert [uid for _, _, uid in read.get_source_image_uids()] == [case.image_uid]
    assert {name for name, _ in read.get_tracking_ids()} == {"1-133 lesion 1", "1-133 lesion 2"}
    assert (read.Rows, read.Columns) == (4536, 2920)


def test_a_report_draws_the_known_boxes(tmp_path: Path) -> None:
    case = CASES["1-132"]
    build(case, header(case), shapes("SR", "ellipse", "box")).save_as(tmp_path / "sr.dcm")
    read = hd.sr.srread(tmp_path / "sr.dcm")
    groups = read.content.get_planar_roi_measurement_groups()  # type: ignore[union-attr]
    assert [str(group.tracking_identifier) for group in groups] == ["1-132 lesion 1", "1-132 lesion 2"]
    ellipse, polyline = (np.asarray(group.roi.value) for group in groups)
    # The box of the first is 2446 to 2864 by 2444 to 2915: higher than wide, so its major axis stands
    # upright.
    np.testing.assert_allclose(ellipse, [(2655, 2444), (2655, 2915), (2446, 2679.5), (2864, 2679.5)])
    np.testing.assert_allclose(polyline, [(1810, 2105), (2124, 2105), (2124, 2427), (1810, 2427), (1810, 2105)])
    assert {group.roi.ContentSequence[0].referenced_sop_instance_uid for group in groups} == {case.image_uid}


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_patient_and_study_are_the_image_s_and_the_image_stays_as_it_is(kind: str) -> None:
    case = CASES["1-280"]
    image, untouched = header(case), header(case)
    built = build(case, image, shapes(kind, "box"))
    assert {name: built.get(name) for name in IDENTITY} == {name: untouched.get(name) for name in IDENTITY}
    assert image == untouched
    assert built.SeriesInstanceUID != untouched.SeriesInstanceUID


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_two_runs_make_the_same_file(kind: str, tmp_path: Path) -> None:
    case = CASES["1-280"]
    for name in ("first", "second"):
        build(case, header(case), shapes(kind, "ellipse")).save_as(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_a_header_with_next_to_nothing_is_enough(kind: str) -> None:
    case = CASES["1-280"]
    image = header(case)
    for keyword in (*IDENTITY, "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientOrientation"):
        if keyword != "StudyInstanceUID" and keyword in image:
            del image[keyword]
    assert build(case, image, shapes(kind, "box")).PatientID in ("", None)


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["SEG", "SR"])
@pytest.mark.parametrize("name", ["1-132", "1-281"])
def test_dciodvfy_finds_no_error(kind: str, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    forms = ("ellipse", "box")[: len(case.lesions)]
    build(case, header(case), shapes(kind, *forms)).save_as(tmp_path / "object.dcm")
    assert dciodvfy(tmp_path / "object.dcm") == []
