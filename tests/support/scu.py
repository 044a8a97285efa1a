"""Sends to a listener under test: mammograms as pydicom writes them, and a modality that sends anything."""

from __future__ import annotations

import io
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from config import settings
from daemon.receiving.listener import Listener
from daemon.storage.received_instance import ReceivedInstance
from tests.support.peers.programs import free_port

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"
HOST = "127.0.0.1"


def mammogram(number: int = 1, size: int = 64) -> Dataset:
    """A small Digital Mammography image For Presentation; its SOP Instance UID ends in `number`."""
    dataset = Dataset()
    dataset.SOPClassUID = MAMMOGRAM
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "PATIENT-4711"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1000"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1001"
    dataset.Modality = "MG"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = bytes((number * 7 + index) % 251 for index in range(256)) * (size * size * 2 // 256)
    return dataset


def write(dataset: Dataset, path: Path, transfer_syntax_uid: str = EXPLICIT) -> Path:
    """As a Part 10 file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encode(dataset: Dataset, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    """The data set alone."""
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=transfer_syntax_uid == IMPLICIT, little_endian=True)
    return stream.getvalue()


def data_set_bytes(path: Path) -> bytes:
    """What follows the file meta information of a Part 10 file (PS3.10 7.1)."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    return content[144 + int.from_bytes(content[140:144], "little") :]


class Accepted(list[ReceivedInstance]):
    """An `accept` that keeps each instance under its SOP Instance UID in `folder`, and lists them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir()

    def __call__(self, incoming: ReceivedInstance) -> None:
        incoming.path.rename(self.file(incoming.sop_instance_uid))
        self.append(incoming)

    def file(self, sop_instance_uid: str) -> Path:
        return self.folder / sop_instance_uid


def listener_settings(**changes: object) -> settings.Listener:
    return settings.Listener.model_validate({"host": HOST, "port": free_port(), **changes})


@contextmanager
def listening(listener: Listener) -> Iterator[Listener]:
    listener.start()
    try:
        yield listener
    finally:
        listener.stop(5)


def request_association(
    port: int,
    contexts: Sequence[tuple[str, Sequence[str]]] = ((MAMMOGRAM, (EXPLICIT,)),),
    called: str = "MAMMOD",
    calling: str = "MODALITY",
    tls: ssl.SSLContext | None = None,
) -> Association:
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 20
    for abstract_syntax, transfer_syntaxes in contexts:
        ae.add_requested_context(abstract_syntax, list(transfer_syntaxes))
    return ae.associate(HOST, port, ae_title=called, tls_args=(tls, None) if tls else None)


def store(
    association: Association,
    content: bytes | None,
    uid: str | None,
    sop_class: str | None = MAMMOGRAM,
    context_id: int = 1,
) -> Dataset:
    """Send a C-STORE request with these bytes as data set and these UIDs, unchecked; return the answer."""
    association._reactor_checkpoint.clear()  # or the association's own thread takes the answer
    while not association._reactor_checkpoint._cond._waiters:  # type: ignore[attr-defined]  # it says it is paused too soon
        time.sleep(0.001)
    association.dimse.send_msg(_request(content, uid, sop_class), context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    answer = Dataset()
    if response is not None:
        answer.Status = response.Status
        answer.ErrorComment = response.ErrorComment
    return answer


def store_in_part(association: Association, content: bytes, uid: str) -> None:
    """Send a C-STORE request but for its last fragment."""
    message = C_STORE_RQ()
    message.primitive_to_message(_request(content, uid, MAMMOGRAM))
    for fragment in list(message.encode_msg(1, 4096))[:-1]:
        association.dul.send_pdu(fragment)


def _request(content: bytes | None, uid: str | None, sop_class: str | None) -> C_STORE:
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request._affected_sop_class_uid = sop_class and UID(sop_class)
    request._affected_sop_instance_uid = uid and UID(uid)
    if content is not None:
        request.DataSet = io.BytesIO(content)
    return request
