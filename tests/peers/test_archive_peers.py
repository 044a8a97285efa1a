"""The archive client against the real programs: Orthanc, dcmqrscp and storescp."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import DigitalMammographyXRayImageStorageForPresentation as MG

from config.settings import TLS
from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.query_retrieve import RetrieveKind, Wanted
from daemon.archive.store_status import OutgoingInstance
from daemon.errors import ArchiveError
from daemon.events.outcomes import StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance
from tests.support.archive_stubs import outgoing
from tests.support.peers.archives import Orthanc, StoreSCP, running_dcmqrscp, running_orthanc
from tests.support.peers.programs import dcmsend, free_port, program, running

pytestmark = pytest.mark.peers


def client(peer: Any, folder: Path, **settings: Any) -> Archive:
    return Archive(
        ArchiveSettings(ae_title=peer.aet, host=peer.host, port=peer.dicom_port, timeout_s=20, **settings),
        "MAMMOD",
        folder,
    )


def write_image(folder: Path, study: str, series: str, seed: int = 0) -> OutgoingInstance:
    """A small mammogram with noise for pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MG
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.PatientID, image.PatientName, image.Modality = "T1", "Test^Only", "MG"
    image.StudyID, image.AccessionNumber, image.SeriesNumber, image.InstanceNumber = "1", "1", 1, seed
    image.StudyDate, image.StudyTime, image.PatientBirthDate, image.PatientSex = "", "", "", ""
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 64, 48, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = np.random.default_rng(seed).integers(0, 4096, (64, 48), np.uint16).tobytes()
    path = folder / f"{image.SOPInstanceUID}.dcm"
    dcmwrite(path, image, enforce_file_format=True)
    return OutgoingInstance(path, str(MG), str(image.SOPInstanceUID), ExplicitVRLittleEndian)


class Study:
    """Two series of one study, two images each."""

    def __init__(self, folder: Path) -> None:
        self.study, self.series = generate_uid(), [generate_uid(), generate_uid()]
        self.images = [write_image(folder, self.study, self.series[number // 2], number) for number in range(4)]

    def wanted(self, number: int, full: bool = True) -> Wanted:
        series = self.series[number // 2] if full else None
        return Wanted(str(self.study), series, self.images[number].sop_instance_uid)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


class Taken:
    """An intake that keeps the data sets it is given."""

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}

    def __call__(self, incoming: ReceivedInstance) -> None:
        dataset = dcmread(BytesIO(incoming.path.read_bytes()))
        assert dataset.file_meta.TransferSyntaxUID == incoming.transfer_syntax_uid
        self.datasets[incoming.sop_instance_uid] = dataset


@pytest.fixture
def listener() -> Iterator[tuple[int, dict[str, Dataset]]]:
    """A C-MOVE destination MAMMOD: its port, and what it received."""
    received: dict[str, Dataset] = {}

    def on_store(event: evt.Event) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.dataset
        return 0x0000

    ae = AE("MAMMOD")
    ae.add_supported_context(MG)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    yield port, received
    server.shutdown()


def test_orthanc_stores_and_returns_unchanged(orthanc: Orthanc, study: Study, tmp_path: Path) -> None:
    archive = client(orthanc, tmp_path)
    archive.echo()
    items = [outgoing(tmp_path), *study.images]
    assert {outcome.kind for outcome in archive.store(items)} == {StoreOutcomeKind.STORED}
    assert sorted(orthanc.instances()) == sorted(item.sop_instance_uid for item in items)
    for item in items:
        assert dcmread(BytesIO(orthanc.instance_file(item.sop_instance_uid))) == dcmread(item.path)


def test_orthanc_takes_a_report_twice_as_one(orthanc: Orthanc, tmp_path: Path) -> None:
    item = outgoing(tmp_path)
    outcomes = list(client(orthanc, tmp_path).store([item, item]))
    assert [outcome.kind for outcome in outcomes] == [StoreOutcomeKind.STORED] * 2
    assert orthanc.instances() == [item.sop_instance_uid]


def test_orthanc_finds_gets_and_moves(study: Study, tmp_path: Path, listener: tuple[int, dict[str, Dataset]]) -> None:
    port, received = listener
    with running_orthanc(tmp_path / "orthanc", modalities={"mammod": ("MAMMOD", port)}) as orthanc:
        archive = client(orthanc, tmp_path)
        list(archive.store(study.images))
        _check_retrieval(archive, study, received)


def test_orthanc_gives_a_compressed_image_as_it_is(orthanc: Orthanc, tmp_path: Path) -> None:
    image = Path(get_testdata_file("JPEG2000.dcm", download=False))
    stored = dcmread(image)
    syntax = stored.file_meta.TransferSyntaxUID
    item = OutgoingInstance(image, str(stored.SOPClassUID), str(stored.SOPInstanceUID), str(syntax))
    archive = client(orthanc, tmp_path)
    [outcome] = archive.store([item])
    assert outcome.kind is StoreOutcomeKind.STORED
    taken = Taken()
    [got] = archive.get_instances([Wanted(None, None, item.sop_instance_uid)], taken)
    assert got.kind is RetrieveKind.RETRIEVED
    dataset = taken.datasets[item.sop_instance_uid]
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert dataset.PixelData == stored.PixelData


def test_dcmqrscp_finds_gets_and_moves(study: Study, tmp_path: Path, listener: tuple[int, dict[str, Dataset]]) -> None:
    port, received = listener
    with running_dcmqrscp(tmp_path / "dcmqrscp", destinations={"MAMMOD": port}) as peer:
        statuses = dcmsend([image.path for image in study.images], peer.host, peer.dicom_port, peer.aet)
        assert set(statuses.values()) == {0x0000}
        _check_retrieval(client(peer, tmp_path), study, received)


def _check_retrieval(archive: Archive, study: Study, received: dict[str, Dataset]) -> None:
    stranger = Wanted(str(study.study), str(study.series[0]), generate_uid())
    full = study.wanted(3)
    assert archive.find_instances([study.wanted(1), stranger]) == [study.wanted(1)]
    assert archive.find_instances([study.wanted(3, full=False)]) == [full]
    taken = Taken()
    outcomes = archive.get_instances([full, stranger, study.wanted(0)], taken)
    assert [outcome.kind is RetrieveKind.RETRIEVED for outcome in outcomes] == [True, False, True]
    assert outcomes[1].kind in (RetrieveKind.MISSING, RetrieveKind.FAILED)  # Orthanc answers C000
    assert taken.datasets == {
        study.images[number].sop_instance_uid: dcmread(study.images[number].path) for number in (3, 0)
    }
    [moved] = archive.move_instances([study.wanted(2)], "MAMMOD")
    assert moved.kind is RetrieveKind.RETRIEVED
    assert received == {study.images[2].sop_instance_uid: dcmread(study.images[2].path)}
    [lost] = archive.move_instances([study.wanted(2)], "NOBODY")
    assert lost.kind is RetrieveKind.FAILED


def test_orthanc_takes_reports_over_stow(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(2)]
    broken = outgoing(tmp_path)
    broken.path.write_bytes(b"nothing of DICOM")
    with running_orthanc(tmp_path / "orthanc", dicomweb=True) as orthanc:
        archive = client(orthanc, tmp_path, stow_url=f"{orthanc.url}/dicom-web")
        outcomes = list(archive.store([items[0], broken, items[1]]))
        assert [outcome.kind is StoreOutcomeKind.STORED for outcome in outcomes] == [True, False, True]
        assert sorted(orthanc.instances()) == sorted(item.sop_instance_uid for item in items)
        for item in items:
            assert dcmread(BytesIO(orthanc.instance_file(item.sop_instance_uid))) == dcmread(item.path)


def test_orthanc_finds_and_gives_over_dicomweb(study: Study, tmp_path: Path) -> None:
    compressed = Path(get_testdata_file("JPEG2000.dcm", download=False))
    stored = dcmread(compressed)
    with running_orthanc(tmp_path / "orthanc", dicomweb=True) as orthanc:
        for file in (compressed, *(image.path for image in study.images)):
            orthanc.upload(file.read_bytes())
        archive = client(orthanc, tmp_path, retrieve="dicomweb", dicomweb_url=f"{orthanc.url}/dicom-web")
        stranger = Wanted(str(study.study), str(study.series[0]), generate_uid())
        lossy = Wanted(stored.StudyInstanceUID, stored.SeriesInstanceUID, stored.SOPInstanceUID)
        asked = [study.wanted(3, full=False), stranger, Wanted(None, None, lossy.sop_uid)]
        assert archive.find_instances(asked) == [study.wanted(3), lossy]
        taken = Taken()
        outcomes = archive.get_instances([study.wanted(3), stranger, lossy], taken)
    kinds = [RetrieveKind.RETRIEVED, RetrieveKind.MISSING, RetrieveKind.RETRIEVED]
    assert [outcome.kind for outcome in outcomes] == kinds
    assert taken.datasets == {study.images[3].sop_instance_uid: dcmread(study.images[3].path), lossy.sop_uid: stored}
    assert taken.datasets[lossy.sop_uid].file_meta.TransferSyntaxUID == stored.file_meta.TransferSyntaxUID


def _openssl(*arguments: str) -> None:
    subprocess.run([program("openssl"), *arguments], check=True, capture_output=True, timeout=60)


def certificate(folder: Path, name: str, signer: str | None) -> Path:
    """`name`.pem and `name`.key in `folder`, signed by `signer` (None: by itself)."""
    signed_by = ["-CA", f"{folder / signer}.pem", "-CAkey", f"{folder / signer}.key"] if signer else []
    purpose = [] if signer else ["-addext", "basicConstraints=critical,CA:TRUE"]
    subject = ["-subj", f"/CN={name}", "-days", "2", "-out", f"{folder / name}.pem", "-keyout", f"{folder / name}.key"]
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *signed_by, *purpose)
    return folder / f"{name}.pem"


def test_tls_both_ways_with_storescp(tmp_path: Path) -> None:
    for name, signer in (("ca", None), ("theirs", "ca"), ("ours", "ca"), ("stranger", None)):
        certificate(tmp_path, name, signer)

    def tls(ours: str, ca: str) -> TLS:
        return TLS(certificate=tmp_path / f"{ours}.pem", key=tmp_path / f"{ours}.key", ca=tmp_path / f"{ca}.pem")

    (tmp_path / "received").mkdir()
    scp = StoreSCP("STORESCP", free_port(), tmp_path / "received")
    keys = ["+tls", str(tmp_path / "theirs.key"), str(tmp_path / "theirs.pem"), "+cf", str(tmp_path / "ca.pem")]
    command = [program("storescp"), "-aet", scp.aet, *keys, "-od", str(scp.folder), str(scp.dicom_port)]
    secure = client(scp, tmp_path, tls=tls("ours", "ca"))

    def ready() -> bool:
        try:
            secure.echo()
        except ArchiveError:
            return False
        return True

    with running(command, tmp_path / "storescp.log", ready):
        item = outgoing(tmp_path)
        assert [outcome.kind for outcome in secure.store([item])] == [StoreOutcomeKind.STORED]
        assert set(scp.files()) == {item.sop_instance_uid}
        for refused in (tls("ours", "stranger"), tls("stranger", "ca")):
            with pytest.raises(ArchiveError):
                client(scp, tmp_path, tls=refused).echo()
        with pytest.raises(ArchiveError):
            client(scp, tmp_path).echo()
