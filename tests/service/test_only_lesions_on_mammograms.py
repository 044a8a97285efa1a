"""What the service does with lesion objects of another patient, and on images that are no mammograms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import Case, report_on
from tests.support.lesion_objects import mammogram
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend
from tests.support.services import Service, save

pytestmark = pytest.mark.peers


def test_another_patient_is_quarantined_until_one_is_corrected_and_no_ultrasound_is_classified(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start()

    def send(*paths: Path) -> None:
        assert set(dcmsend(list(paths), service.host, service.port, service.aet).values()) == {0}

    right = case.image.PatientID
    case.image.PatientID = "ANOTHER"
    send(save(case.image, tmp_path / "another.dcm"), case.segmentation_path)
    service.wait_jobs("quarantined")
    (job,) = service.jobs()
    assert "its patient is not that of image" in job.reason and "Patient ID differs" in job.reason
    assert "ANOTHER" not in job.reason and not service.outbox()

    case.image.PatientID = right  # as after a correction in the PACS
    send(save(case.image, tmp_path / "corrected.dcm"))
    service.wait_jobs("done")
    assert len(service.outbox()) == 1

    ultrasound = mammogram(400, 320, patient_id="US-1")
    ultrasound.SOPClassUID = ultrasound.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    ultrasound.Modality = "US"
    send(save(ultrasound, tmp_path / "us.dcm"), report_on(ultrasound, tmp_path / "us-report.dcm"))
    service.wait_jobs("done", "done")
    job = service.jobs()[1]
    assert job.reason == "nothing to classify" and "never classified" in job.result["reasons"][0]
    assert len(service.outbox()) == 1, "no report on an ultrasound image"
