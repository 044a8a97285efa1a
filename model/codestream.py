"""Image size that a compressed frame announces, read from its header before a decoder allocates memory."""

from __future__ import annotations

import struct

# Start of frame: JPEG's SOF0 to SOF15 but for DHT, JPG and DAC (ISO/IEC 10918-1 table B.1), JPEG-LS's SOF55
# (14495-1 C.2.2).
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def announced_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream; None if another or without size."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SOC, SIZ (ISO/IEC 15444-1 A.5.1)
        return _size_of_jpeg_2000(frame)
    if frame[:2] == b"\xff\xd8":  # SOI
        return _size_of_jpeg(frame)
    return None


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int] | None:
    if len(frame) < 24:
        return None
    width, height, left, top = struct.unpack_from(">IIII", frame, 8)
    return height - top, width - left


def _size_of_jpeg(frame: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return None
        if marker in _START_OF_FRAME:
            if at + 9 > len(frame):
                return None
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
        at += 2 + max(int(struct.unpack_from(">H", frame, at + 2)[0]), 2)
    return None
