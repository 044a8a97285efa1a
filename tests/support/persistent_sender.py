"""A PACS as senders are in a hospital: several associations at once, and each object again until it was
answered with success.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    SegmentationStorage,
)

AGAIN_AFTER_S = 0.2
OBJECTS_PER_ASSOCIATION = 10


class PersistentSender:
    """Sends what `send` is given from `associations` threads; `accepted` counts the successes of each SOP
    Instance UID.
    """

    def __init__(self, host: str, port: int, aet: str, associations: int = 4) -> None:
        self._peer = (host, port, aet)
        self._queue: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.accepted: dict[str, int] = {}
        self.statuses: dict[int | None, int] = {}
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(associations)]
        for thread in self._threads:
            thread.start()

    def send(self, path: Path) -> None:
        self._queue.put(path)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._ended.is_set():
            batch = self._batch()
            if batch and not self._send(batch):
                self._ended.wait(AGAIN_AFTER_S)

    def _batch(self) -> list[Path]:
        batch: list[Path] = []
        try:
            batch.append(self._queue.get(timeout=0.1))
            while len(batch) < OBJECTS_PER_ASSOCIATION:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _send(self, batch: list[Path]) -> bool:
        """One association; what was not accepted is queued again."""
        host, port, aet = self._peer
        ae = AE("MODALITY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 20
        for sop_class in (
            DigitalMammographyXRayImageStorageForPresentation,
            SegmentationStorage,
            Comprehensive3DSRStorage,
        ):
            ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
        association = ae.associate(host, port, ae_title=aet)
        all_accepted = True
        for path in batch:
            dataset = dcmread(path)
            status = None
            if association.is_established:
                with contextlib.suppress(RuntimeError, ValueError):  # it ended just now
                    status = association.send_c_store(dataset).get("Status")
            with self._lock:
                self.statuses[status] = self.statuses.get(status, 0) + 1
                if status == 0x0000:
                    uid = str(dataset.SOPInstanceUID)
                    self.accepted[uid] = self.accepted.get(uid, 0) + 1
            if status != 0x0000:
                all_accepted = False
                self._queue.put(path)
        if association.is_established:
            association.release()
        return all_accepted
