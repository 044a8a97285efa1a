"""What is said of a lesion object that has no result."""

from __future__ import annotations

import highdicom as hd
import pytest
from pydicom.dataset import Dataset

from config.errors import ConfigurationError
from config.loading import load_settings
from config.settings import Reports
from daemon.reports.statements import RESEARCH_USE, UNTRAINED
from tests.support import report_objects as b
from tests.support.report_cases import read

KIND = "without-result"
GROUP, STATUS, COMMENT, LIBRARY = "125007", "111065", "121106", "111028"


def evidence(report: Dataset) -> set[str]:
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


@pytest.mark.parametrize(
    ("case", "code", "why"),
    [
        ("failed", "111224", "Failed: the marked lesions were NOT classified: image 1.2.3 has 2 rows"),
        ("nothing", "111225", "There was nothing to classify: "),
    ],
)
def test_one_image_level_group_says_the_status_and_why(case: str, code: str, why: str) -> None:
    report = read(case, KIND)
    (group,) = b.items(report, GROUP)
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1501"
    assert [item.ConceptCodeSequence[0].CodeValue for item in b.items(group, STATUS)] == [code]
    assert b.items(report, "111030") == b.items(report, "111047") == []
    (said,) = b.texts(group, COMMENT)
    assert said.startswith(why)
    assert b.texts(report, COMMENT)[0] == RESEARCH_USE
    assert UNTRAINED in b.texts(report, COMMENT)
    assert report.ContentQualification == "RESEARCH"
    assert report.SeriesDescription.startswith("RESEARCH ONLY: no result: ")


def test_it_refers_to_the_lesion_object_and_to_the_images_of_its_patient() -> None:
    images = {b.uid("image", "rcc"), b.uid("image", "lmlo")}
    assert evidence(read("failed", KIND)) == images | {b.uid("source", "lesions")}
    report = read("failed, images of two patients", KIND)
    assert evidence(report) == {b.uid("image", "rcc"), b.uid("source", "lesions")}
    assert report.PatientID == "P-1"
    assert b.items(report, "113076")[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == b.uid("source", "lesions")
    assert b.items(read("failed without images", KIND), LIBRARY) == []


def test_it_names_what_it_replaces_and_what_was_left_out() -> None:
    report = read("nothing", KIND)
    (study,) = report.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == b.uid("old")
    assert "Not classified: segment 1: it is skin." in b.texts(report, COMMENT)


def test_highdicom_reads_its_group() -> None:
    content = hd.sr.Comprehensive3DSR.from_dataset(read("failed", KIND)).content
    (group,) = content.get_image_measurement_groups()
    (status,) = group.get_qualitative_evaluations()
    assert status.value.meaning == "Failed"
    assert len(group.source_images) == 2


def test_the_settings_want_the_kind_that_can_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Reports().on_nothing, Reports().on_failure) == (False, False)
    monkeypatch.setenv("MAMMOD_REPORTS__KINDS", '["mammo-cad-sr"]')
    monkeypatch.setenv("MAMMOD_REPORTS__ON_FAILURE", "true")
    with pytest.raises(ConfigurationError, match="tid1500"):
        load_settings()
