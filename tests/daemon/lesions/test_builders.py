"""The synthetic objects of the tests are valid DICOM: checked by dciodvfy and dsrdump (DCMTK)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from tests.support.lesion_objects import (
    MASS,
    MarkedRegion,
    cad_report_of,
    mammogram,
    measurement_report_of,
    segmentation_of,
    single_image_finding,
)

SQUARE = [(10, 20), (30, 20), (30, 50), (10, 50), (10, 20)]


def objects() -> dict[str, Dataset]:
    image = mammogram(60, 50)
    mask = np.zeros((60, 50), np.uint8)
    mask[10:20, 5:9] = 1
    return {
        "mammogram": image,
        "inverted mammogram": mammogram(60, 50, photometric="MONOCHROME1", laterality="R", view="MLO"),
        "tomosynthesis": mammogram(60, 50, frames=3),
        "segmentation": segmentation_of(image, [mask, mask]),
        "fractional segmentation": segmentation_of(image, mask, "FRACTIONAL"),
        "measurement report": measurement_report_of(image, [MarkedRegion("POLYLINE", SQUARE)]),
        "CAD report": cad_report_of([image], [single_image_finding(MASS, (1, 1, 1), outline=SQUARE)]),
    }


@pytest.mark.peers
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("name", objects())
def test_dciodvfy_finds_no_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "object.dcm"
    objects()[name].save_as(path, enforce_file_format=True)
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60).stderr
    assert "Error" not in said, said


@pytest.mark.peers
@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dsrdump (DCMTK) is not installed")
def test_dsrdump_follows_the_references_of_a_cad_report(tmp_path: Path) -> None:
    path = tmp_path / "cad.dcm"
    image = mammogram(60, 50)
    finding = single_image_finding(Code("129793001", "SCT", "Mammography breast density"), (1, 1, 1), outline=SQUARE)
    cad_report_of([image], [finding]).save_as(path, enforce_file_format=True)
    said = subprocess.run(["dsrdump", path], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert "<selected from 1.1.1>" in said.stdout
