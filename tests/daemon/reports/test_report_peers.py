"""Every report that these tests make, read by other programs: dicom3tools, DCMTK and highdicom."""

from __future__ import annotations

import html
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from daemon.lesions.lesion import Region
from daemon.reports.statements import RESEARCH_USE
from tests.support import report_objects as b
from tests.support.report_cases import CASES, file_of

PATIENT_AND_STUDY = ("0008,0020", "0008,0030", "0008,0050", "0008,0090", "0010,0010", "0010,0020", "0010,0021")


def convertible(report: hd.sr.Comprehensive3DSR) -> list[str]:
    """Return DCMTK's option for a page in UTF-8, if glibc's iconv knows the character set (no ISO 2022)."""
    return [] if "ISO 2022 IR 87" in report.get("SpecificCharacterSet", "") else ["+U8"]


@pytest.fixture(params=CASES, ids=str)
def report_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "report.dcm"
    path.write_bytes(file_of(request.param))
    return path


@pytest.mark.peers
def test_dsr2html_shows_result_tracking_and_research_marking(report_file: Path) -> None:
    report = hd.sr.srread(report_file)
    page = html.unescape(b.run("dsr2html", *convertible(report), report_file))
    assert "</html>" in page
    assert RESEARCH_USE in page
    for number in b.items(report, "111047"):
        assert str(number.MeasuredValueSequence[0].NumericValue) in page
    for name in b.texts(report, "112039"):
        shown = name.splitlines()[0]
        assert (shown if convertible(report) else shown.encode("ascii", "ignore").split()[-1].decode()) in page


@pytest.mark.peers
@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_dcmdump_reads_the_same_patient_from_image_and_report(charset: str, tmp_path: Path) -> None:
    image = b.mammogram(SpecificCharacterSet=charset, PatientName="Müller^Jörg", PatientID="7 ")
    image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    report = b.report([b.result(b.lesion(image))], image)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    selected = [word for tag in PATIENT_AND_STUDY for word in ("+P", tag)]
    of_image = b.run("dcmdump", "-q", *selected, tmp_path / "image.dcm")
    assert "0010,0010" in of_image
    assert b.run("dcmdump", "-q", *selected, tmp_path / "report.dcm") == of_image


@pytest.mark.parametrize("graphic_type", b.REGIONS)
def test_highdicom_reads_identical_points(graphic_type: str, tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(file_of(graphic_type.lower()))
    content = hd.sr.srread(tmp_path / "report.dcm").content
    expected = Region(graphic_type, np.asarray(b.REGIONS[graphic_type], dtype=np.float32))
    if graphic_type == "MULTIPOINT":
        (group,) = content.get_image_measurement_groups()
        (region,) = group.get_measurements()[0].referenced_coordinates
    else:
        (group,) = content.get_planar_roi_measurement_groups()
        region = group.roi
        assert group.finding_type.meaning == "Mass"
    assert region.graphic_type.value == graphic_type
    assert np.array_equal(region.value.astype(np.float32), expected.points)
    assert group.tracking_identifier == "Finding A"
    assert group.get_measurements(name=hd.sr.CodedConcept("111047", "DCM", "Probability of cancer"))[0].value == 87.12
