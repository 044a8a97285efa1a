"""C-STORE command sets (PS3.7 9.3.1), read and written directly: pydicom needs half a millisecond."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daemon.dicom.uids import is_valid_uid

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE request with its data set; the attributes have the names of pynetdicom's primitive."""

    MessageID: int
    AffectedSOPClassUID: str
    AffectedSOPInstanceUID: str
    _dataset_file: Any
    MessageIDBeingRespondedTo: None = None


def store_request(command: bytes) -> tuple[int, str, str] | None:
    """Return Message ID, SOP Class and SOP Instance UID of a C-STORE-RQ command set (PS3.7 table 9.3-1).

    Return None for any other command set, one with an irregularity, or a request without a data set:
    pynetdicom reads these.
    """
    values: dict[int, bytes] = {}
    for element, value in _elements(command):
        if (
            element in values
            or element not in _STORE_REQUEST_LENGTHS
            or len(value) != (_STORE_REQUEST_LENGTHS[element] or len(value))
        ):
            return None
        values[element] = value
    if sum(8 + len(value) for value in values.values()) != len(command) or not values.keys() >= _REQUIRED:
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
_STORE_REQUEST_LENGTHS = {
    0x0000: 4, 0x0002: 0, 0x0100: 2, 0x0110: 2, 0x0700: 2, 0x0800: 2, 0x1000: 0, 0x1030: 0, 0x1031: 2
}  # fmt: skip
_REQUIRED = {0x0002, 0x0100, 0x0110, 0x0800, 0x1000}


def _elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield element numbers and values up to the first element that does not fit."""
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
    """Return the command set of a C-STORE-RSP (PS3.7 table 9.3-2), without the UIDs that the request lacked.

    The first 64 characters of `comment` (ASCII) become the Error Comment.
    """
    elements = [
        _implicit(0x0002, padded_uid(sop_class_uid)) if sop_class_uid else b"",
        _short(0x0100, C_STORE_RSP),
        _short(0x0120, message_id),
        _short(0x0800, NO_DATA_SET),
        _short(0x0900, status),
        _implicit(0x0902, padded(comment[:64], b" ")) if comment else b"",
        _implicit(0x1000, padded_uid(sop_instance_uid)) if sop_instance_uid else b"",
    ]
    group = b"".join(elements)
    return _implicit(0x0000, struct.pack("<L", len(group))) + group


def _implicit(element: int, value: bytes) -> bytes:
    """Encode an element of group 0000; command sets are in Implicit VR Little Endian (PS3.7 6.3.1)."""
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def _short(element: int, value: int) -> bytes:
    return _implicit(element, struct.pack("<H", value))


def padded_uid(uid: str) -> bytes:
    """Return a UID as the value of an element, padded with a zero byte to even length."""
    return padded(uid, b"\0")


def padded(text: str, padding: bytes) -> bytes:
    """Return ASCII `text` as the value of an element, padded with `padding` to even length."""
    content = text.encode("ascii", "replace")
    return content + padding if len(content) % 2 else content
