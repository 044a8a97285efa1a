"""What hostile and broken peers put on the wire, byte by byte, where pynetdicom as sender would not."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
from collections.abc import Sequence

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context

from tests.support.scu import EXPLICIT, HOST, MAMMOGRAM

REQUESTED = b"\x01"  # the first byte of an A-ASSOCIATE-RQ PDU
ABORTED = b"\x07"  # of an A-ABORT PDU
ACCEPTED = b"\x02"
REJECTED = b"\x03"
ECHO = "1.2.840.10008.1.1"
QUIET_S = 0.1  # without an answer: all that was said has been heard, most likely


def association_request(
    called: str = "MAMMOD",
    calling: str = "MODALITY",
    contexts: Sequence[tuple[str, Sequence[str]]] = ((MAMMOGRAM, (EXPLICIT,)), (ECHO, (EXPLICIT,))),
) -> bytes:
    """An A-ASSOCIATE-RQ PDU; presentation contexts are numbered 1, 3, 5, ..."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.called_ae_title, primitive.calling_ae_title = called, calling
    offered = []
    for number, (abstract, transfer) in enumerate(contexts):
        context = build_context(abstract, list(transfer))
        context.context_id = 2 * number + 1
        offered.append(context)
    primitive.presentation_context_definition_list = offered
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.3.4"
    primitive.user_information = [length, implementation]
    return A_ASSOCIATE_RQ(primitive).encode()


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBI", kind, 0, len(body)) + body


def p_data(*fragments: tuple[int, int, bytes]) -> bytes:
    """A P-DATA-TF PDU of (presentation context id, message control header, bytes) each (PS3.8 9.3.5, E.2)."""
    return pdu(
        4, b"".join(struct.pack(">IBB", len(data) + 2, context, header) + data for context, header, data in fragments)
    )


def command(*elements: tuple[int, bytes]) -> bytes:
    """A command set (PS3.7 6.3.1) of (element number, value) each, group length first."""
    body = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def store_command(uid: str, sop_class: str = MAMMOGRAM, data_set_type: int = 1) -> bytes:
    """A C-STORE-RQ command set (PS3.7 table 9.3-1)."""
    padded = [text.encode() + b"\0" * (len(text) % 2) for text in (sop_class, uid)]
    return command(
        (0x0002, padded[0]),
        (0x0100, struct.pack("<H", 0x0001)),
        (0x0110, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", 2)),
        (0x0800, struct.pack("<H", data_set_type)),
        (0x1000, padded[1]),
    )


def echo_command() -> bytes:
    """A C-ECHO-RQ command set."""
    return command(
        (0x0002, ECHO.encode() + b"\0"),
        (0x0100, struct.pack("<H", 0x0030)),
        (0x0110, struct.pack("<H", 7)),
        (0x0800, struct.pack("<H", 0x0101)),
    )


def connect(port: int, source: str = HOST, timeout: float = 20) -> socket.socket:
    """A connection from a loopback address, with a file descriptor above those that select() can use."""
    low = socket.create_connection((HOST, port), timeout=timeout, source_address=(source, 0))
    with low:
        high = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024))
    high.settimeout(timeout)
    return high


def receive_pdu(connection: socket.socket) -> bytes:
    """One whole PDU, or what came of it before the connection ended."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while missing := 6 + (struct.unpack(">I", received[2:6])[0] if len(received) >= 6 else 0) - len(received):
            part = connection.recv(missing)
            if not part:
                break
            received += part
    return received


def kinds_of(heard: bytes) -> list[bytes]:
    """The first byte of each PDU in what was answered."""
    kinds, at = [], 0
    while at + 6 <= len(heard):
        kinds.append(heard[at : at + 1])
        at += 6 + int.from_bytes(heard[at + 2 : at + 6], "big")
    return kinds


def associate(port: int, source: str = HOST, request: bytes | None = None) -> tuple[socket.socket, bytes]:
    """A connection that asked for an association, and what was answered."""
    connection = connect(port, source)
    connection.sendall(association_request() if request is None else request)
    return connection, receive_pdu(connection)


def converse(port: int, said: bytes, source: str = HOST, timeout: float = 20) -> bytes:
    """What is answered to these bytes until the connection ends; what follows a request waits for its answer.

    Raises:
        TimeoutError: the connection does not end.
    """
    heard = b""
    asked = 6 + int.from_bytes(said[2:6], "big") if said[:1] == REQUESTED else 0
    with contextlib.closing(connect(port, source, timeout)) as connection:
        try:
            if asked < len(said):
                connection.sendall(said[:asked])
                heard = connection.recv(65536) if asked else b""
                said = said[asked:]
            connection.sendall(said)
            while _can_be_read(connection, QUIET_S):  # an answer is not cut short by our end
                if not (part := connection.recv(65536)):
                    return heard
                heard += part
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                heard += part
        except TimeoutError:
            raise
        except OSError:  # closed from the other side
            pass
    return heard


def _can_be_read(connection: socket.socket, limit_s: float) -> bool:
    """By poll, which takes descriptors above 1,023."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(1000 * limit_s))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection by now; what it said before is dropped."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
