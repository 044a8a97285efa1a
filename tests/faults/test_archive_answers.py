"""Each way in which an archive can fail a report: retried with back-off, failed with the reason, or done.

A row is an archive, the report's and the job's state after one sending, and what the reason says. How each
answer is judged stands in tests/daemon/archive/test_client.py and test_stow.py; here it is seen to the end,
in the ledger.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import CTImageStorage

from config.settings import Archive as ArchiveSettings
from daemon.archive.outbox_sender import send_due
from daemon.ledger import Ledger
from tests.daemon.archive.test_outbox_sender import queue, states
from tests.daemon.archive.test_stow_rs import answer, server, stow_archive
from tests.support.archive_stubs import archive, outgoing, stub
from tests.support.ledgers import hold, join
from tests.support.peers.programs import free_port

AGAIN, FAILED, DONE = ("queued", "sending"), ("failed", "failed"), ("stored", "done")
FIRST_S = 10.0


@contextmanager
def nobody() -> Iterator[int]:
    yield free_port()


def answering(status: int) -> Callable[[], AbstractContextManager[int]]:
    return lambda: stub(lambda event: status)


LARGE = 8 << 20  # bytes: more than the kernel's buffers hold, so that the sender is still at it
CLOSES_AFTER = 1 << 20


@contextmanager
def closing_mid_transfer() -> Iterator[int]:
    """Ends the connection, without an abort, when an eighth of the report is there."""
    heard = {"bytes": 0, "stores": 0}

    def on_data(event: evt.Event) -> None:
        heard["bytes"] += len(event.data)
        if heard["bytes"] >= CLOSES_AFTER:
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    def on_store(event: evt.Event) -> int:
        heard["stores"] += 1
        return 0x0000

    with stub(on_store, handlers=((evt.EVT_DATA_RECV, on_data),)) as port:
        yield port
    assert CLOSES_AFTER <= heard["bytes"] < LARGE and heard["stores"] == 0, "it was in the middle"


@contextmanager
def saying_nothing() -> Iterator[int]:
    """Takes the connection, and never answers the association's request."""
    with socket.create_server(("127.0.0.1", 0)) as server_socket:
        yield int(server_socket.getsockname()[1])


def closing_before_the_answer() -> AbstractContextManager[int]:
    """Ends the connection between request and answer, without an abort."""

    def on_store(event: evt.Event) -> int:
        event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return 0x0000

    return stub(on_store)


@contextmanager
def resetting() -> Iterator[int]:
    """Takes the association's request and answers with a TCP reset."""
    with socket.create_server(("127.0.0.1", 0)) as server_socket:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server_socket.accept()
                except OSError:
                    return
                connection.recv(100)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server_socket.getsockname()[1])
        server_socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def never_answering() -> Iterator[int]:
    over = threading.Event()
    with stub(lambda event: (over.wait(20), 0x0000)[1]) as port:
        yield port
        over.set()


DICOM: dict[str, tuple[Callable[[], AbstractContextManager[int]], tuple[str, str], str]] = {
    "down": (nobody, AGAIN, "cannot be reached"),
    "refusing associations": (lambda: stub(ae_title="OTHER"), AGAIN, "refused the association"),
    "answering A700": (answering(0xA700), AGAIN, "0xA700"),
    "answering C000": (answering(0xC000), FAILED, "0xC000"),
    "answering A900": (answering(0xA900), FAILED, "0xA900"),
    # Which is said depends on whether our half of the connection sees its end before it waits for the answer.
    "closing mid-transfer": (closing_mid_transfer, AGAIN, "broke the association off|gave no answer"),
    "closing before the answer": (closing_before_the_answer, AGAIN, "broke the association off"),
    "never answering the association's request": (saying_nothing, AGAIN, "did not answer the association request"),
    "resetting the connection": (resetting, AGAIN, "did not answer the association request"),
    "accepting and never answering": (never_answering, AGAIN, "gave no answer in 0.5 s"),
    "rejecting the presentation context": (
        lambda: stub(contexts=[(CTImageStorage, [ExplicitVRLittleEndian])]),
        FAILED,
        "no presentation context",
    ),
    "warning": (answering(0xB000), DONE, "0xB000"),
    "storing": (answering(0x0000), DONE, "0x0000"),
}
STOW: dict[str, tuple[int | None, dict[str, Any] | None, tuple[str, str], str]] = {
    "503": (503, None, AGAIN, "HTTP 503"),
    "409 with out of resources": (409, {"reason": 0xA700}, AGAIN, "0xA700"),
    "409 with cannot understand": (409, {"reason": 0xC000}, FAILED, "0xC000"),
    "409 with no failure reason": (409, {"reason": None}, FAILED, "without a reason"),
    "200 with a warning": (200, {"warning": 0xB000}, DONE, "0xB000"),
    "connection reset": (None, None, AGAIN, "check archive.stow_url"),
    "200": (200, {"warning": None}, DONE, "stored"),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(opened)
    yield opened
    opened.close()


@pytest.mark.parametrize("fault", DICOM)
def test_each_fault_of_a_dicom_archive(fault: str, ledger: Ledger, tmp_path: Path) -> None:
    peer, expected, said = DICOM[fault]
    item = outgoing(tmp_path, text="x" * LARGE if "mid-transfer" in fault else "")
    with peer() as port:
        _send_once(ledger, item, archive(port, tmp_path, timeout_s=0.5 if "never" in fault else 10), tmp_path)
    _check(ledger, item.sop_instance_uid, expected, said)


@pytest.mark.parametrize("fault", STOW)
def test_each_fault_of_a_stow_archive(fault: str, ledger: Ledger, tmp_path: Path) -> None:
    http, named, expected, said = STOW[fault]
    item = outgoing(tmp_path)
    uid = item.sop_instance_uid
    if http is None:
        with resetting() as port:
            _send_once(ledger, item, stow_archive(f"http://127.0.0.1:{port}/dicom-web", tmp_path), tmp_path)
    else:
        body = b""
        if named is not None and "warning" in named:
            body = answer(stored=uid, reason=named["warning"])
        elif named is not None:
            body = answer(failed=uid, reason=named["reason"])
        with server([(http, body)]) as (url, _, _):
            _send_once(ledger, item, stow_archive(url, tmp_path), tmp_path)
    _check(ledger, uid, expected, said)


def _send_once(ledger: Ledger, item: Any, peer: Any, folder: Path) -> None:
    queue(ledger, item, time.time())
    settings = ArchiveSettings(retry_first_s=FIRST_S, retry_max_s=900)
    send_due(ledger, hold(), peer, settings, folder.joinpath)


def _check(ledger: Ledger, uid: str, expected: tuple[str, str], said: str) -> None:
    state, job, attempts, _ = states(ledger)[uid]
    assert (state, job) == expected
    assert attempts == 1
    with ledger.read() as connection:
        row = connection.exec_driver_sql("SELECT reason, next_attempt_at, attempts FROM outbox").one()
        (why,) = connection.exec_driver_sql("SELECT reason FROM jobs").one()
    assert re.search(said, row.reason)
    if expected == FAILED:
        assert why == row.reason, "the job shows the reason to the operator"
    if expected == AGAIN:
        assert FIRST_S / 2 - 1 < row.next_attempt_at - time.time() <= FIRST_S
