"""The whole way against real peers: a PACS on both sides, retrieval, duplicates, changed content, bad
input.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from tests.support.cases import COLUMNS, ROWS, Case, make_case, report_on
from tests.support.lesion_objects import segmentation_of
from tests.support.peers.archives import Orthanc, StoreSCP, running_orthanc, running_storescp
from tests.support.peers.programs import dciodvfy, dcmsend, dsr2html, free_port, wait_until
from tests.support.services import Service, save

pytestmark = pytest.mark.peers


def test_a_pacs_on_both_sides_gets_one_report_back_and_no_loop(
    new_service: Callable[..., Service], orthanc: Orthanc, case: Case, tmp_path: Path
) -> None:
    service = new_service((orthanc.aet, orthanc.dicom_port))
    service.forked = False  # once as it is started in daily life
    service.start()
    orthanc.add_modality("mammod", service.aet, service.port)
    orthanc.auto_route("mammod")
    dcmsend(case.files, orthanc.host, orthanc.dicom_port, orthanc.aet)
    service.wait_jobs("done")
    wait_until(lambda: "own report received" in service.log, "the report routed back to us", 60)
    assert len(service.jobs()) == len(service.outbox()) == 1
    (item,) = service.outbox()
    assert set(orthanc.instances()) == {
        case.image.SOPInstanceUID,
        case.segmentation.SOPInstanceUID,
        item.sop_instance_uid,
    }
    returned = orthanc.instance_file(item.sop_instance_uid)
    assert dcmread(io.BytesIO(returned)) == dcmread(service.spool / item.path), "the archive returns it unchanged"
    report = tmp_path / "report.dcm"
    report.write_bytes(returned)
    assert dciodvfy(report) == []
    assert "RESEARCH USE ONLY" in dsr2html(report)
    assert service.stop() == 0


def test_presentation_state_and_picture_reach_the_pacs_and_make_no_loop(
    new_service: Callable[..., Service], orthanc: Orthanc, case: Case, tmp_path: Path
) -> None:
    kinds = ["tid1500", "gsps", "sc"]
    service = new_service((orthanc.aet, orthanc.dicom_port), settings={"reports": {"kinds": kinds}})
    service.start()
    orthanc.add_modality("mammod", service.aet, service.port)
    orthanc.auto_route("mammod")
    dcmsend(case.files, orthanc.host, orthanc.dicom_port, orthanc.aet)
    service.wait_jobs("done")
    wait_until(lambda: service.log.count("own report received") == 3, "all three routed back to us", 60)
    assert [item.kind for item in service.outbox()] == kinds
    for item in service.outbox():
        returned = orthanc.instance_file(item.sop_instance_uid)
        assert dcmread(io.BytesIO(returned)) == dcmread(service.spool / item.path), "the archive returns it unchanged"
        (tmp_path / "object.dcm").write_bytes(returned)
        assert dciodvfy(tmp_path / "object.dcm") == []
    picture = dcmread(service.spool / service.outbox()[2].path).pixel_array
    assert (picture[..., 0].astype(int) - picture[..., 2]).max() > 150, "it has the warm colours of a heat map"
    assert len(service.jobs()) == 1
    assert service.stop() == 0


@pytest.mark.parametrize("way", ["c-get", "c-move"])
def test_a_missing_image_is_asked_for_from_the_archive(
    way: str, new_service: Callable[..., Service], orthanc: Orthanc, case: Case
) -> None:
    service = new_service(
        (orthanc.aet, orthanc.dicom_port), settings={"archive": {"retrieve": way, "retrieve_after_s": 0}}
    )
    service.start()
    orthanc.add_modality("mammod", service.aet, service.port)
    dcmsend([case.image_path], orthanc.host, orthanc.dicom_port, orthanc.aet)
    dcmsend([case.segmentation_path], service.host, service.port, service.aet)
    service.wait_jobs("done")


def test_a_missing_image_is_fetched_by_dicomweb(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    with running_orthanc(tmp_path / "orthanc", dicomweb=True) as orthanc:
        web = {"retrieve": "dicomweb", "dicomweb_url": f"{orthanc.url}/dicom-web", "retrieve_after_s": 0}
        service = new_service((storescp.aet, storescp.dicom_port), settings={"archive": web})
        service.start()
        dcmsend([case.segmentation_path], service.host, service.port, service.aet)
        wait_until(lambda: "does not have 1 of its images" in str(service.jobs()), "the image missed", 60)
        dcmsend([case.image_path], orthanc.host, orthanc.dicom_port, orthanc.aet)
        service.wait_jobs("done")
        image = next(row for row in service.instances() if row.sop_instance_uid == case.image.SOPInstanceUID)
        assert dcmread(service.spool / image.path) == dcmread(case.image_path)
        assert set(storescp.files()) == {service.outbox()[0].sop_instance_uid}
        assert service.stop() == 0


def test_duplicates_make_no_work_and_changed_content_makes_a_new_report(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start()
    for _ in range(3):
        assert set(dcmsend(case.files, service.host, service.port, service.aet).values()) == {0}
    service.wait_jobs("done")
    assert len(storescp.files()) == 1

    case.image.PixelData = bytes(value ^ 0x11 for value in case.image.PixelData)
    changed = save(case.image, tmp_path / "changed.dcm")
    assert set(dcmsend([changed], service.host, service.port, service.aet).values()) == {0}
    wait_until(lambda: len(storescp.files()) == 2, "a second report", 90)
    service.wait_jobs("done")
    first, second = service.outbox()
    predecessor = dcmread(storescp.files()[second.sop_instance_uid]).PredecessorDocumentsSequence[0]
    named = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.sop_instance_uid
    assert len(service.instances()) == 3, "both versions of the image are kept"


def test_bad_instances_cost_themselves_and_the_next_good_one_passes(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start()
    other = make_case(tmp_path / "other", 2)
    small = make_case(tmp_path / "small", 3)
    misfit = segmentation_of(small.image, np.pad(np.ones((9, 9), np.uint8), ((0, ROWS - 9), (0, COLUMNS - 9))))
    for item in misfit.PerFrameFunctionalGroupsSequence:
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = other.image.SOPInstanceUID
    misfit.Rows, misfit.Columns = ROWS // 2, COLUMNS * 2
    misfit.PatientID, misfit.PatientName = other.image.PatientID, other.image.PatientName
    pointless = dcmread(report_on(other.image, tmp_path / "sr.dcm"))
    pointless.ContentSequence = [
        item for item in pointless.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue != "126010"
    ]
    files = [other.image_path, save(misfit, tmp_path / "misfit.dcm"), save(pointless, tmp_path / "pointless.dcm")]
    assert set(dcmsend(files, service.host, service.port, service.aet).values()) == {0}
    dcmsend(case.files, service.host, service.port, service.aet)
    wait_until(lambda: "done" in [job.state for job in service.jobs()], "the good one", 90)
    quarantined = [job.reason for job in service.jobs() if job.state == "quarantined"]
    assert len(quarantined) == 1 and str(ROWS // 2) in quarantined[0], quarantined
    assert len(storescp.files()) == 1


def test_an_archive_that_is_down_delays_the_report_and_loses_none(
    new_service: Callable[..., Service], case: Case, tmp_path: Path
) -> None:
    port = free_port()
    service = new_service(("STORESCP", port))
    service.start()
    dcmsend(case.files, service.host, service.port, service.aet)
    wait_until(lambda: [item.attempts >= 2 for item in service.outbox()] == [True], "two attempts", 60)
    assert [job.state for job in service.jobs()] == ["sending"]
    service.kill()
    with running_storescp(tmp_path / "late") as late:
        settings = service.settings.read_text().replace(f"port = {port}", f"port = {late.dicom_port}")
        service.settings.write_text(settings)
        service.start()
        service.wait_jobs("done")
        assert len(late.files()) == 1
