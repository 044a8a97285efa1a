"""The demo's archive: a small C-STORE SCP that keeps instances as Part 10 files with their arrival time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from daemon.dicom.status import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS


@dataclass(frozen=True)
class Stored:
    """One instance in the archive: its file, and when it was complete on disk (seconds since the epoch)."""

    path: Path
    at: float


def file_name(number: int) -> str:
    """Return the file name of the report that arrived as number `number`, from 1."""
    return f"{number:02d}.dcm"


class EmbeddedArchive:
    """An SCP on a free port of the loopback address; files are 01.dcm, 02.dcm ... in `folder`.

    A repeated instance is answered with success and not stored again.
    """

    def __init__(self, folder: Path, ae_title: str) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.port = 0
        self._stored: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> EmbeddedArchive:
        self.folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=self.ae_title)
        ae.require_called_aet = True
        ae.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        self._server: Any = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = self._server.server_address[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()

    def stored(self) -> dict[str, Stored]:
        """Return the stored instances by SOP Instance UID, in the order of arrival."""
        with self._lock:
            return dict(self._stored)

    def _store(self, event: Any) -> int:
        uid = event.request.AffectedSOPInstanceUID
        if not UID(uid).is_valid:
            return CANNOT_UNDERSTAND
        with self._lock:
            if uid in self._stored:
                return SUCCESS
            path = self.folder / file_name(len(self._stored) + 1)
            try:
                path.write_bytes(event.encoded_dataset())
            except OSError:
                path.unlink(missing_ok=True)
                return OUT_OF_RESOURCES
            self._stored[uid] = Stored(path, time.time())
        return SUCCESS
