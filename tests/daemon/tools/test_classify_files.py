"""`mammod classify` as a user runs it, with a stand-in engine: table, JSON, files written, errors, exit
status.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from config.settings import ENVIRONMENT_PREFIX
from daemon.demo.cases import read_cases
from daemon.demo.lesion_objects import Shape, build
from daemon.tools import classify_files
from model.bundle import FORMAT, MANIFEST, WEIGHTS, Architecture, Manifest
from model.crop import CropPolicy
from model.normalise import NormalisationPolicy
from tests.support import launch
from tests.support import report_objects as b
from tests.support.cases import BOTTOM, LEFT, RIGHT, TOP, Case, make_case, report_on
from tests.support.fork_server import run_forked
from tests.support.lesion_objects import cad_report_of
from tests.support.peers.programs import dciodvfy
from tests.support.services import ROOT, write_settings

ALL_KINDS = ["tid1500", "gsps", "sc"]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file that names a bundle with a manifest and no network, which the stand-in engine does
    not miss.
    """
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / WEIGHTS).write_bytes(b"none")
    manifest = Manifest(
        name="stand-in",
        version="1.0",
        architecture=Architecture(network="xception_c"),
        crop=CropPolicy(kind="pixels"),
        normalisation=NormalisationPolicy(),
        trained=True,
        licence="Apache-2.0",
        format=FORMAT,
        parameters=1,
        weights_sha256=hashlib.sha256(b"none").hexdigest(),
    )
    (bundle / MANIFEST).write_text(manifest.model_dump_json())
    file = tmp_path / "mammod.toml"
    write_settings(file, {"model": {"bundle": str(bundle)}, "reports": {"kinds": ALL_KINDS}})
    return file


def classify(settings: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    environment |= {"MAMMOD_TEST_ENGINE": "stand-in", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    answer = run_forked(launch.main, "classify", "--config", settings, *arguments, environment=environment)
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def probability_in(report: Path) -> list[float]:
    """As highdicom reads it."""
    groups = hd.sr.srread(report).content.get_planar_roi_measurement_groups()
    return [measurement.value / 100 for group in groups for measurement in group.get_measurements()]


def test_a_table_reports_of_every_kind_and_a_picture(settings: Path, case: Case, tmp_path: Path) -> None:
    output = tmp_path / "output"
    answer = classify(settings, "--output", output, *case.files)
    assert answer.returncode == 0, answer.stderr
    (row,) = [line for line in answer.stdout.splitlines() if "seg-1.dcm 1" in line]
    assert "image-1.dcm" in row and "%" in row and ("benign" in row or "malignant" in row)
    assert "esearch" in answer.stdout
    assert sorted(path.name for path in output.iterdir()) == [
        "seg-1-gsps.dcm",
        "seg-1-on-image-1.png",
        "seg-1-sc.dcm",
        "seg-1-tid1500.dcm",
    ]
    capture = dcmread(output / "seg-1-sc.dcm")
    np.testing.assert_array_equal(np.asarray(Image.open(output / "seg-1-on-image-1.png")), capture.pixel_array)
    assert capture.PatientID == case.image.PatientID
    for kind in ALL_KINDS:
        assert dciodvfy(output / f"seg-1-{kind}.dcm") == []


def test_json_of_a_folder_in_which_a_report_of_ours_lies_too(settings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    first, second = make_case(folder / "a", 1), make_case(folder / "b", 2)
    shutil.copy(
        report_on(second.image, tmp_path / "sr.dcm"), folder / "b" / "seg-1.dcm"
    )  # a name that is there already
    (folder / "notes.txt").write_text("no DICOM")
    image = b.mammogram()
    b.report([b.result(b.lesion(image))], image).save_as(folder / "ours.dcm", enforce_file_format=True)
    output = folder / "output"
    answer = classify(settings, "--json", "--kinds", "tid1500", "--output", output, folder)
    assert answer.returncode == 0, answer.stderr
    assert "2 files skipped: not DICOM, or reports of mammod" in answer.stderr
    told: dict[str, Any] = json.loads(answer.stdout)
    assert told["bundle"]["name"] == "stand-in" and told["bundle"]["trained"] is True and told["refused"] == []
    objects = told["lesion_objects"]
    assert [Path(item["file"]).relative_to(folder).as_posix() for item in objects] == [
        "a/seg-1.dcm",
        "b/seg-1.dcm",
        "b/seg-2.dcm",
    ]
    files = [report["file"] for item in objects for report in item["reports"]]
    assert files == ["seg-1-tid1500.dcm", "seg-1-2-tid1500.dcm", "seg-2-tid1500.dcm"]
    for item, case in zip(objects, (first, second, second), strict=True):
        (lesion,) = item["lesions"]
        assert lesion["image"] == str(case.image_path)
        box = lesion["box"]
        middle = (box["left"] + box["right"]) / 2, (box["top"] + box["bottom"]) / 2
        assert middle == pytest.approx(((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), abs=0.5)
        assert box["right"] - box["left"] == 299
        assert probability_in(output / item["reports"][0]["file"]) == [pytest.approx(lesion["probability"], abs=6e-5)]
        assert lesion["class"] == ("malignant" if lesion["probability"] >= 0.5 else "benign")
        # The box reaches past the left and the upper edge of an image of 320 x 400: of 299 x 299 pixels 235
        # x 270 are left.
        assert lesion["remarks"] == ["29 % of the box outside the image"]
        assert item["problems"] == [] and len(item["pictures"]) == 1


def test_no_two_lesion_objects_write_under_the_same_name() -> None:
    sources = [Path("a/seg.dcm"), Path("b/seg.dcm"), Path("c/seg-2.dcm"), Path("d/seg.dcm")]
    assert list(classify_files._stems(sources).values()) == ["seg", "seg-2", "seg-2-2", "seg-3"]


def test_what_cannot_be_used_is_named_and_the_rest_is_done(settings: Path, case: Case, tmp_path: Path) -> None:
    alone = make_case(tmp_path / "alone", 7)
    (tmp_path / "notes.txt").write_text("no DICOM")
    given = [*case.files, alone.segmentation_path, tmp_path / "notes.txt", tmp_path / "nowhere.dcm"]
    answer = classify(settings, "--json", "--output", tmp_path / "output", *given)
    assert answer.returncode == 1
    told = json.loads(answer.stdout)
    good, missing = told["lesion_objects"]
    assert len(good["lesions"]) == 1 and good["problems"] == []
    assert missing["lesions"] == [] and missing["reports"] == []
    (problem,) = missing["problems"]
    assert "images that are missing" in problem and alone.image.SOPInstanceUID in problem
    assert problem in answer.stderr
    assert {Path(item["file"]).name: item["reason"] for item in told["refused"]} == {
        "notes.txt": "not a DICOM file; DICOM Part 10 files are expected",
        "nowhere.dcm": "cannot be read: No such file or directory",
    }


def test_without_a_lesion_object_nothing_is_started(settings: Path, case: Case, tmp_path: Path) -> None:
    answer = classify(settings, "--output", tmp_path / "output", case.image_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "None of these 1 objects marks a lesion" in answer.stderr
    assert not (tmp_path / "output").exists()


def test_what_is_not_read_is_named_with_its_kind(case: Case, tmp_path: Path) -> None:
    rtstruct, nameless = dcmread(case.segmentation_path), dcmread(case.segmentation_path)
    rtstruct.SOPClassUID = rtstruct.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    rtstruct.SOPInstanceUID = rtstruct.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    rtstruct.save_as(tmp_path / "rtstruct.dcm")
    del nameless.SOPInstanceUID
    nameless.save_as(tmp_path / "nameless.dcm", enforce_file_format=False)
    copy = tmp_path / "copy.dcm"
    shutil.copy(case.segmentation_path, copy)
    given = [case.segmentation_path, copy, tmp_path / "rtstruct.dcm", tmp_path / "nameless.dcm"]
    found = classify_files.sort_files((path, True) for path in given)
    assert list(found.sources.values()) == [copy]
    assert "copy.dcm is used, the other is not" in found.notes[0] and "an RT Structure Set" in found.notes[1]
    assert "no SOP Instance UID" in found.refused[tmp_path / "nameless.dcm"]


def test_a_cad_report_without_findings_is_a_normal_result(settings: Path, case: Case, tmp_path: Path) -> None:
    report = cad_report_of([case.image], [])
    report.save_as(tmp_path / "cad.dcm", enforce_file_format=True)
    answer = classify(settings, "--output", tmp_path / "output", tmp_path / "cad.dcm", case.image_path)
    assert answer.returncode == 0, answer.stderr
    assert "without findings: there is nothing to classify" in answer.stderr


def test_wrong_words_are_said_before_anything_is_started(settings: Path, case: Case, tmp_path: Path) -> None:
    answer = classify(settings, "--kinds", "gsps,fax", *case.files)
    assert answer.returncode == 1
    assert "there is no kind 'fax'; allowed: tid1500" in answer.stderr
    (tmp_path / "taken").touch()
    answer = classify(settings, "--output", tmp_path / "taken", *case.files)
    assert answer.returncode == 1
    assert "cannot be written" in answer.stderr and "name another folder" in answer.stderr


def test_real_mammograms_with_known_lesions(settings: Path, tmp_path: Path) -> None:
    """Two lesions drawn in an SR, and one in a SEG at the image's edge: the middles of the table's boxes
    come back.
    """
    cases = [case for case in read_cases() if case.name in ("1-132", "1-280")]
    for case, kind in zip(cases, ("SR", "SEG"), strict=True):
        header = dcmread(case.path, stop_before_pixels=True)
        built = build(case, header, [Shape(kind, "ellipse")] * len(case.lesions))
        built.save_as(tmp_path / f"{case.name}-{kind}.dcm", enforce_file_format=True)
    made = sorted(tmp_path.glob("*.dcm"))
    answer = classify(settings, "--json", "--output", tmp_path / "output", *made, *(case.path for case in cases))
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)["lesion_objects"]
    for case, item in zip(cases, told, strict=True):
        for known, lesion in zip(case.lesions, item["lesions"], strict=True):
            box = lesion["box"]
            assert lesion["image_uid"] == case.image_uid
            assert (box["left"] + box["right"]) / 2 == pytest.approx((known.left + known.right) / 2, abs=0.51)
            assert (box["top"] + box["bottom"]) / 2 == pytest.approx((known.top + known.bottom) / 2, abs=0.51)
        for report in item["reports"]:
            assert dciodvfy(tmp_path / "output" / report["file"]) == []
        assert {report["kind"] for report in item["reports"]} == set(ALL_KINDS)
        (picture,) = item["pictures"]
        assert Image.open(tmp_path / "output" / picture).height > 1000
