"""What is read and written for every instance that is received, directly: pydicom takes half a millisecond for each of these."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.dicom.uids import is_valid_uid

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101


def part_10_start(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1), of valid UIDs; the data set follows."""
    group = b"".join(
        (
            _explicit(0x0001, b"OB\0\0" + struct.pack("<L", 2), b"\0\1"),
            _explicit(0x0002, b"UI", _uid(sop_class_uid)),
            _explicit(0x0003, b"UI", _uid(sop_instance_uid)),
            _explicit(0x0010, b"UI", _uid(transfer_syntax_uid)),
            _explicit(0x0012, b"UI", _uid(IMPLEMENTATION_CLASS_UID)),
            _explicit(0x0013, b"SH", _even(IMPLEMENTATION_VERSION_NAME, b" ")),
        )
    )
    return bytes(128) + b"DICM" + _explicit(0x0000, b"UL", struct.pack("<L", len(group))) + group


def _explicit(element: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002 in Explicit VR little endian; a long VR brings its reserved bytes and length along."""
    length = b"" if len(vr) > 2 else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, element) + vr + length + value


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE request with its data set, by the names that pynetdicom's primitive has."""

    MessageID: int
    AffectedSOPClassUID: str
    AffectedSOPInstanceUID: str
    _dataset_file: Any
    MessageIDBeingRespondedTo: None = None


def store_request(command: bytes) -> tuple[int, str, str] | None:
    """Message ID, SOP Class and SOP Instance UID of a plain C-STORE-RQ command set (PS3.7 table 9.3-1) with a data set.

    None for any other command set, and for one that is not quite as it should be: those are left to pynetdicom.
    """
    values: dict[int, bytes] = {}
    for element, value in _elements(command):
        if (
            element in values
            or element not in _OF_STORE_REQUEST
            or len(value) != (_OF_STORE_REQUEST[element] or len(value))
        ):
            return None
        values[element] = value
    if sum(8 + len(value) for value in values.values()) != len(command) or not values.keys() >= _NEEDED:
        return None
    if _number(values[0x0100]) != C_STORE_RQ or _number(values[0x0800]) == NO_DATA_SET:
        return None
    sop_class_uid, sop_instance_uid = (
        values[element].removesuffix(b"\0").decode("ascii", "replace") for element in (0x0002, 0x1000)
    )
    if not (is_valid_uid(sop_class_uid) and is_valid_uid(sop_instance_uid)):
        return None
    return _number(values[0x0110]), sop_class_uid, sop_instance_uid


# Elements of group 0000 that a C-STORE-RQ may have, with the length of their values (0: any).
_OF_STORE_REQUEST = {
    0x0000: 4, 0x0002: 0, 0x0100: 2, 0x0110: 2, 0x0700: 2, 0x0800: 2, 0x1000: 0, 0x1030: 0, 0x1031: 2
}  # fmt: skip
_NEEDED = {0x0002, 0x0100, 0x0110, 0x0800, 0x1000}


def _elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    """Up to the first that does not fit."""
    at = 0
    while at + 8 <= len(command):
        group, element, length = struct.unpack_from("<HHL", command, at)
        if group != 0 or at + 8 + length > len(command):
            return
        yield element, command[at + 8 : at + 8 + length]
        at += 8 + length


def _number(value: bytes) -> int:
    return int.from_bytes(value, "little")


def store_response(
    message_id: int, sop_class_uid: str | None, sop_instance_uid: str | None, status: int, comment: str = ""
) -> bytes:
    """The command set of a C-STORE-RSP (PS3.7 table 9.3-2); what the request did not say is left out.

    `comment` goes into Error Comment, ASCII, its first 64 characters (LO).
    """
    elements = [
        _implicit(0x0002, _uid(sop_class_uid)) if sop_class_uid else b"",
        _short(0x0100, C_STORE_RSP),
        _short(0x0120, message_id),
        _short(0x0800, NO_DATA_SET),
        _short(0x0900, status),
        _implicit(0x0902, _even(comment[:64], b" ")) if comment else b"",
        _implicit(0x1000, _uid(sop_instance_uid)) if sop_instance_uid else b"",
    ]
    group = b"".join(elements)
    return _implicit(0x0000, struct.pack("<L", len(group))) + group


def _implicit(element: int, value: bytes) -> bytes:
    """An element of group 0000; command sets are in Implicit VR little endian (PS3.7 6.3.1)."""
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def _short(element: int, value: int) -> bytes:
    return _implicit(element, struct.pack("<H", value))


def _uid(uid: str) -> bytes:
    return _even(uid, b"\0")


def _even(text: str, padding: bytes) -> bytes:
    content = text.encode("ascii", "replace")
    return content + padding if len(content) % 2 else content
