"""The start of a Part 10 file (PS3.10 7.1), written directly: pydicom takes half a millisecond for it."""

from __future__ import annotations

import struct

from daemon.dicom.encoding import padded, padded_uid
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


def part_10_start(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble and file meta information (PS3.10 7.1) for valid UIDs; the data set follows them."""
    group = b"".join(
        (
            _explicit(0x0001, b"OB\0\0" + struct.pack("<L", 2), b"\0\1"),
            _explicit(0x0002, b"UI", padded_uid(sop_class_uid)),
            _explicit(0x0003, b"UI", padded_uid(sop_instance_uid)),
            _explicit(0x0010, b"UI", padded_uid(transfer_syntax_uid)),
            _explicit(0x0012, b"UI", padded_uid(IMPLEMENTATION_CLASS_UID)),
            _explicit(0x0013, b"SH", padded(IMPLEMENTATION_VERSION_NAME, b" ")),
        )
    )
    return bytes(128) + b"DICM" + _explicit(0x0000, b"UL", struct.pack("<L", len(group))) + group


def _explicit(element: int, vr: bytes, value: bytes) -> bytes:
    """Encode an element of group 0002 (Explicit VR Little Endian); a long `vr` includes its length field."""
    length = b"" if len(vr) > 2 else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, element) + vr + length + value
