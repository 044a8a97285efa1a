"""Archives made of pynetdicom that misbehave on purpose, and small instances to send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Comprehensive3DSRStorage, Verification

from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.store_status import OutgoingInstance
from tests.support.peers.programs import free_port

SR = str(Comprehensive3DSRStorage)


def outgoing(
    folder: Path, sop_class: str = SR, syntax: str = ExplicitVRLittleEndian, text: str = ""
) -> OutgoingInstance:
    """A valid Part 10 file of the class, encoded in `syntax`, small but for its `text`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Test^Only", "T1", "SR"
    if text:
        dataset.TextValue = text
    path = folder / f"{uid}.dcm"
    dcmwrite(path, dataset, enforce_file_format=True)
    return OutgoingInstance(path, sop_class, str(uid), syntax)


@contextmanager
def stub(
    on_store: Callable[[evt.Event], Any] = lambda event: 0x0000,
    contexts: list[tuple[str, list[str]]] | None = None,
    handlers: tuple[tuple[Any, Callable[..., Any]], ...] = (),
    ae_title: str = "STUB",
) -> Iterator[int]:
    """An SCP on a free loopback port (which is yielded); by default it takes SR in Explicit VR little
    endian.
    """
    ae = AE(ae_title)
    ae.require_called_aet = True
    ae.supported_contexts = [build_context(Verification)] + [
        build_context(*pair) for pair in contexts or [(SR, [ExplicitVRLittleEndian])]
    ]
    for context in ae.supported_contexts:
        context.scu_role, context.scp_role = True, True
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store), *handlers])
    try:
        yield port
    finally:
        server.shutdown()


def archive(port: int, folder: Path, ae_title: str = "STUB", timeout_s: float = 10, **settings: Any) -> Archive:
    """Our side of an archive on loopback."""
    return Archive(
        ArchiveSettings(ae_title=ae_title, host="127.0.0.1", port=port, timeout_s=timeout_s, **settings),
        "MAMMOD",
        folder,
    )
