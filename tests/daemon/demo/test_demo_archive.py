"""The embedded archive against DCMTK's programs and pynetdicom: what it keeps is what was sent."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE

from daemon.demo.archive import EmbeddedArchive


def instance(uid: str, comment: str = "first") -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid
    dataset.PatientComments = comment
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def send(archive: EmbeddedArchive, *datasets: Dataset) -> list[int]:
    ae = AE("SENDER")
    ae.add_requested_context(SecondaryCaptureImageStorage, ExplicitVRLittleEndian)
    ae.add_requested_context("1.2.840.10008.1.1")
    association = ae.associate("127.0.0.1", archive.port, ae_title=archive.ae_title)
    assert association.is_established
    try:
        assert association.send_c_echo().Status == 0
        return [association.send_c_store(dataset).Status for dataset in datasets]
    finally:
        association.release()


def test_it_keeps_each_instance_once_as_a_part_10_file(tmp_path: Path) -> None:
    uid, other = generate_uid(), generate_uid()
    with EmbeddedArchive(tmp_path / "reports", "DEMOARCHIVE") as archive:
        assert send(archive, instance(uid), instance(other), instance(uid, "second")) == [0, 0, 0]
        held = archive.stored()
    assert list(held) == [uid, other]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["01.dcm", "02.dcm"]
    read = pydicom.dcmread(held[uid].path)
    assert read.PatientComments == "first"
    assert read.file_meta.MediaStorageSOPInstanceUID == uid
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_is_none_never_becomes_a_path(tmp_path: Path) -> None:
    with EmbeddedArchive(tmp_path / "reports", "DEMOARCHIVE") as archive:
        dataset = instance("1.2")
        dataset["SOPInstanceUID"]._value = "../../evil"
        status = send(archive, dataset)
    assert status == [0xC000]
    assert list(tmp_path.rglob("*.dcm")) == []


def test_a_full_disk_is_out_of_resources_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    with EmbeddedArchive(tmp_path / "reports", "DEMOARCHIVE") as archive:
        monkeypatch.setattr(Path, "write_bytes", full)
        assert send(archive, instance(generate_uid())) == [0xA700]
        assert archive.stored() == {}
    assert list(tmp_path.rglob("*.dcm")) == []
