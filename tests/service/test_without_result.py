"""Reports of the service where there is no result: written once, and replaced by a later result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.coding import Code

from tests.support.cases import COLUMNS, ROWS, Case
from tests.support.lesion_objects import segmentation_of
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dciodvfy, dcmsend, wait_until
from tests.support.services import Service, save

pytestmark = pytest.mark.peers

STATUS = "111065"


def status_of(path: Path) -> str:
    found = [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in dcmread(path).iterall()
        if item.VR == "SQ"
        for item in item.value
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeValue == STATUS
    ]
    return found[0] if found else ""


def test_a_failure_is_reported_once_and_the_later_result_replaces_that_report(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service(
        (storescp.aet, storescp.dicom_port),
        settings={"reports": {"on_failure": True, "kinds": ["tid1500", "mammo-cad-sr"]}},
    )
    service.start()
    good = dcmread(case.segmentation_path)
    case.segmentation.Rows, case.segmentation.Columns = ROWS // 2, COLUMNS * 2
    misfit = save(case.segmentation, tmp_path / "misfit.dcm")
    for _ in range(2):
        assert set(dcmsend([case.image_path, misfit], service.host, service.port, service.aet).values()) == {0}
    wait_until(lambda: len(storescp.files()) == 1, "the report of the failure", 90)
    service.wait_jobs("quarantined")
    ((uid, report),) = storescp.files().items()
    assert status_of(report) == "Failed"
    assert dciodvfy(report) == []
    assert service.retry(1) == "ready"
    wait_until(lambda: service.log.count("job quarantined") == 2, "the second attempt", 60)
    service.wait_jobs("quarantined")
    assert [item.sop_instance_uid for item in service.outbox()] == [uid], "the same failure is the same report"

    good.SeriesDescription = "drawn again"
    assert set(dcmsend([save(good, tmp_path / "good.dcm")], service.host, service.port, service.aet).values()) == {0}
    wait_until(lambda: len(storescp.files()) == 3, "the results", 90)
    service.wait_jobs("quarantined", "done")
    assert [item.kind for item in service.outbox()] == ["tid1500", "tid1500", "mammo-cad-sr"]
    assert [item.state for item in service.outbox()] == ["stored"] * 3
    _failure, result, cad = (dcmread(storescp.files()[item.sop_instance_uid]) for item in service.outbox())
    (study,) = result.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uid
    assert "PredecessorDocumentsSequence" not in cad, "there was no Mammography CAD SR before"
    assert dcmsend(list(storescp.files().values()), service.host, service.port, service.aet)
    assert service.log.count("own report received") == 3
    assert len(service.jobs()) == 2


def test_nothing_to_classify_is_reported(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port), settings={"reports": {"on_nothing": True}})
    service.start()
    muscle = segmentation_of(
        case.image, np.ones((ROWS, COLUMNS), np.uint8), finding=Code("60005003", "SCT", "Pectoralis major muscle")
    )
    files = [case.image_path, save(muscle, tmp_path / "muscle.dcm")]
    assert set(dcmsend(files, service.host, service.port, service.aet).values()) == {0}
    service.wait_jobs("done")
    (job,), (item,) = service.jobs(), service.outbox()
    assert (job.reason, item.state, item.kind) == ("nothing to classify", "stored", "tid1500")
    assert status_of(storescp.files()[item.sop_instance_uid]) == "Not Attempted"
