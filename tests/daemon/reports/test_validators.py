"""Every kind of report before validators that are not ours: dicom3tools, DCMTK, PixelMed and dicom-validator.

DCMTK's dcmpschk and what renders pictures stand in the tests of presentation states and Secondary Captures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.reports.registry import KINDS
from daemon.reports.statements import RESEARCH_USE
from tests.support import report_objects as b
from tests.support.peers.iods import iod_errors
from tests.support.peers.programs import dcentvfy, dciodvfy, dsr2html, dsrdump, pixelmed
from tests.support.report_cases import CAD_CASES, CASES, DOCUMENTS, file_of

pytestmark = pytest.mark.peers

ROOTS = {
    "tid1500": "Imaging Measurement Report",
    "mammo-cad-sr": "Mammography CAD Report",
    "without-result": "Imaging Measurement Report",
}
FULLEST = [("tid1500", "everything"), ("mammo-cad-sr", "everything"), ("without-result", "failed")]


@pytest.fixture
def file(kind: str, case: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.dcm"
    path.write_bytes(file_of(case, kind))
    return path


@pytest.mark.parametrize(("kind", "case"), DOCUMENTS)
def test_dciodvfy_finds_no_error(file: Path) -> None:
    assert dciodvfy(file) == []


# Device UID in Contributing Equipment Sequence is newer than both validators' edition (dciodvfy warns).
NEWER_ATTRIBUTE = "sop-common (0018,A001)/(0018,1002): TagUnexpected"


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_and_dicom_validator_find_no_error_in_any_object_of_any_kind(kind: str, tmp_path: Path) -> None:
    for case in set(CAD_CASES) - {"view as orientation"}:  # whose image says no Rows, which a presentation state needs
        made = CASES[case]().objects(kind)
        assert made
        for number, item in enumerate(made):
            file = tmp_path / f"{case} {number}.dcm"
            file.write_bytes(b.saved(item))
            assert iod_errors(file) == [NEWER_ATTRIBUTE], case
            if case == "everything":
                assert dciodvfy(file) == []


@pytest.mark.parametrize(("kind", "lost"), [("gsps", "PresentationLUTShape"), ("sc", "ConversionType")])
def test_dicom_validator_would_see_what_is_missing(kind: str, lost: str, tmp_path: Path) -> None:
    made = CASES["everything"]().objects(kind)[0]
    tag = made[lost].tag
    del made[lost]
    (tmp_path / "made.dcm").write_bytes(b.saved(made))
    said = iod_errors(tmp_path / "made.dcm")
    assert any(error.endswith(f" ({tag.group:04X},{tag.elem:04X}): TagMissing") for error in said)


def test_dcentvfy_finds_image_lesion_object_and_all_reports_to_be_of_one_patient_and_study(tmp_path: Path) -> None:
    given = CASES["polyline"]()
    instances = [*given.images, *(made for kind in KINDS for made in given.objects(kind))]
    files = [tmp_path / f"{number}.dcm" for number in range(len(instances))]
    for file, instance in zip(files, instances, strict=True):
        file.write_bytes(b.saved(instance))
    assert len(files) == 1 + len(KINDS) and dcentvfy(files) == []
    instances[0].PatientID = instances[0].PatientID + "X"
    files[0].write_bytes(b.saved(instances[0]))
    assert any("PatientID" in line for line in dcentvfy(files))


@pytest.mark.parametrize(("kind", "case"), DOCUMENTS)
def test_dsrdump_reads_it_without_complaint(file: Path, kind: str) -> None:
    said, complaints = dsrdump(file)
    assert complaints == []
    assert f'"{ROOTS[kind]}"' in said


@pytest.mark.parametrize(("kind", "case"), FULLEST)
def test_dsr2html_renders_it_with_its_research_marking(file: Path) -> None:
    assert RESEARCH_USE in dsr2html(file)


# Value sets that may be replaced or extended: CID 100 is a baseline (BCID); CID 6014 is extensible
# and has no lesion whose kind is not known.
NO_MAMMOGRAPHY = 'Code (71651007,SCT,"Mammography") not found in context group 100'
NO_LESION = 'Code (52988006,SCT,"Lesion") not found in context group 6014'
ALLOWED = {"tid1500": NO_MAMMOGRAPHY, "mammo-cad-sr": NO_LESION, "without-result": NO_MAMMOGRAPHY}
# What the validator, of 2022, does not know. TID 4019 had no manufacturer then. Comments, the lesion object,
# the interpretation and the status are additions to TID 1500, which is extensible. With a MULTIPOINT in the
# document it holds TID 1410 against TID 1501, which has no geometric purpose.
NEWER = {
    "tid1500": (
        "Comment",
        "Segmentation",
        "Has interpretation",
        "Algorithm Manufacturer",
        "Geometric purpose of region",
    ),
    "mammo-cad-sr": ("Algorithm Manufacturer",),
    "without-result": ("Comment", "Segmentation", "Summary of Analyses", "Algorithm Manufacturer"),
}


@pytest.mark.parametrize(("kind", "case"), FULLEST)
def test_pixelmed_finds_it_to_be_what_its_template_asks(file: Path, kind: str) -> None:
    said = pixelmed(file)
    assert "Root Template Validation Complete" in said
    errors = [line for line in said if line.startswith("Error")]
    assert [line for line in errors if not line.endswith(ALLOWED[kind])] == []
    added = [line for line in said if line.endswith("Content Item not in template")]
    assert [line for line in added if not any(f'"{name}"): ' in line for name in NEWER[kind])] == []
