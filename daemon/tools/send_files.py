"""`mammod send`: send files by C-STORE to the service itself or to another node."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console

from config.settings import TLS, Settings
from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.store_status import OutgoingInstance
from daemon.events.outcomes import StoreOutcomeKind

SENDER_AE_TITLE = "MAMMOD_SEND"


def send_files(
    files: Sequence[Path],
    *,
    host: str,
    port: int,
    ae_title: str,
    settings: Settings,
    console: Console,
    tls: TLS | None = None,
) -> int:
    """Send `files` (folders recursively) and print each answer; return 0 if every file was stored, else 1."""
    outgoing = []
    failures = 0
    for path in _walk(files):
        try:
            meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
            syntax = meta.file_meta.TransferSyntaxUID
            outgoing.append(OutgoingInstance(path, str(meta.SOPClassUID), str(meta.SOPInstanceUID), str(syntax)))
        except (InvalidDicomError, AttributeError, OSError) as error:
            failures += 1
            console.print(
                f"{path}: not sent, it is not a DICOM file ({type(error).__name__})", style="red", soft_wrap=True
            )
    target = ArchiveSettings(host=host, port=port, ae_title=ae_title, tls=tls, timeout_s=settings.archive.timeout_s)
    with tempfile.TemporaryDirectory() as incoming:
        outcomes = Archive(target, SENDER_AE_TITLE, Path(incoming)).store(outgoing)
        for item, outcome in zip(outgoing, outcomes, strict=True):
            stored = outcome.kind is StoreOutcomeKind.STORED
            failures += not stored
            console.print(
                f"{item.path}: {'stored' if stored else 'NOT stored'}: {outcome.reason}",
                style=None if stored else "red",
                soft_wrap=True,
                highlight=False,
            )
    return 1 if failures else 0


def _walk(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path
