"""Our own reports are recognised when an archive sends them back, and nothing else is."""

from __future__ import annotations

import io

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from daemon.dicom.equipment import is_own_report
from tests.support import report_objects as b
from tests.support.report_cases import DOCUMENTS, file_of, read


@pytest.mark.parametrize(("kind", "case"), DOCUMENTS)
def test_every_report_is_recognised_from_its_header(kind: str, case: str) -> None:
    stream = io.BytesIO(file_of(case, kind))
    header = dcmread(stream, specific_tags=["SOPClassUID", "Manufacturer", "ManufacturerModelName"])
    assert is_own_report(header)


def test_a_report_that_an_archive_changed_is_recognised() -> None:
    report = read("polyline")
    report.PatientName, report.PatientID, report.AccessionNumber = "Merged^Patient", "NEW", "NEW"
    report.StudyInstanceUID, report.SOPInstanceUID = "1.2.3", "1.2.3.4"
    report.SeriesDescription = "Changed"
    del report.ContributingEquipmentSequence
    del report.IssuerOfPatientID
    assert is_own_report(b.as_read(report))


# PS3.6 annex A.
EVERY_CLASS = {
    "Enhanced SR": "1.2.840.10008.5.1.4.1.1.88.22",
    "Comprehensive SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "Comprehensive 3D SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "Mammography CAD SR": "1.2.840.10008.5.1.4.1.1.88.50",
    "Grayscale Softcopy Presentation State": "1.2.840.10008.5.1.4.1.1.11.1",
    "Secondary Capture": "1.2.840.10008.5.1.4.1.1.7",
    "Multi-frame Grayscale Byte Secondary Capture": "1.2.840.10008.5.1.4.1.1.7.2",
    "Multi-frame Grayscale Word Secondary Capture": "1.2.840.10008.5.1.4.1.1.7.3",
    "Multi-frame True Color Secondary Capture": "1.2.840.10008.5.1.4.1.1.7.4",
}


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_an_object_of_any_class_is_ours_by_its_equipment_only(name: str) -> None:
    ours = read("polyline")
    ours.SOPClassUID = EVERY_CLASS[name]
    assert is_own_report(ours)
    ours.Manufacturer = "Scanner Inc."
    assert not is_own_report(ours)


def test_nothing_else_is_taken_for_a_report_of_ours() -> None:
    derived = read("polyline")
    derived.Manufacturer, derived.ManufacturerModelName = "Workstation Inc.", "Viewer"
    another_model = read("polyline")
    another_model.ManufacturerModelName = "other"
    unnamed = read("polyline")
    unnamed.Manufacturer = None
    another_class = read("polyline")
    another_class.SOPClassUID = b.SEG
    others = (derived, another_model, unnamed, another_class, b.mammogram(), b.source(b.COMPREHENSIVE_3D_SR), Dataset())
    assert not any(map(is_own_report, others))
