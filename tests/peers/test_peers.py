"""The peer fixtures themselves: real programs start, answer, keep data, are skipped or fail by name."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage

from tests.support.peers import programs
from tests.support.peers.archives import Orthanc, QueryRetrieveSCP, StoreSCP
from tests.support.peers.programs import dcmsend, storescu, wait_until

CT = Path(get_testdata_file("CT_small.dcm"))
SR = Path(get_testdata_file("test-SR.dcm"))
CT_UID = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"


@pytest.mark.peers
def test_orthanc_keeps_routes_and_returns(orthanc: Orthanc, storescp: StoreSCP) -> None:
    orthanc.add_modality("store", storescp.aet, storescp.dicom_port)
    orthanc.auto_route("store")
    assert dcmsend([CT], orthanc.host, orthanc.dicom_port, orthanc.aet) == {CT_UID: 0x0000}
    assert orthanc.instances() == [CT_UID]
    expected = dcmread(CT)
    del expected[0xFFFC, 0xFFFC]  # DCMTK drops the Data Set Trailing Padding
    assert dcmread(BytesIO(orthanc.instance_file(CT_UID))) == expected
    wait_until(lambda: CT_UID in storescp.files(), "the instance routed to storescp")
    orthanc.delete(CT_UID)
    assert orthanc.instances() == []


@pytest.mark.peers
@pytest.mark.parametrize("send", [dcmsend, storescu])
def test_senders_report_each_status(send: object, storescp: StoreSCP, dcmqrscp: QueryRetrieveSCP) -> None:
    sr_uid = str(dcmread(SR).SOPInstanceUID)
    for peer in (storescp, dcmqrscp):
        assert send([CT, SR], peer.host, peer.dicom_port, peer.aet) == {CT_UID: 0, sr_uid: 0}  # type: ignore[operator]
    assert set(storescp.files()) == {CT_UID, sr_uid}


@pytest.mark.peers
@pytest.mark.parametrize("send", [dcmsend, storescu])
def test_senders_report_a_refusal_and_no_answer(send: object, tmp_path: Path) -> None:
    answers = iter([0xA700, 0xB007])
    ae = AE("FAULTY")
    ae.add_supported_context(CTImageStorage)
    port = programs.free_port()
    server = ae.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: next(answers))]
    )
    second = tmp_path / "second.dcm"
    dataset = dcmread(CT)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(second)
    try:
        statuses = send([CT, second, SR], "127.0.0.1", port, "FAULTY")  # type: ignore[operator]
    finally:
        server.shutdown()
    assert statuses == {CT_UID: 0xA700, "1.2.3.4": 0xB007}


@pytest.mark.peers
def test_dciodvfy_names_errors(tmp_path: Path) -> None:
    dataset = dcmread(CT)
    assert programs.dciodvfy(CT) == []
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "broken.dcm")
    errors = programs.dciodvfy(tmp_path / "broken.dcm")
    assert any("StudyInstanceUID" in line for line in errors), errors


@pytest.mark.peers
def test_dsr2html_renders_a_report_and_refuses_an_image() -> None:
    assert "<html" in programs.dsr2html(SR).lower()
    with pytest.raises(AssertionError, match="dsr2html"):
        programs.dsr2html(CT)


def test_a_missing_program_skips_by_name_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs dciodvfy: apt-get install dicom3tools"):
        programs.program("dciodvfy")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needs dciodvfy: apt-get install dicom3tools"):
        programs.program("dciodvfy")
