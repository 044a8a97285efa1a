"""Write TensorBoard's scalar log without TensorFlow, so that every Keras backend has it.

An event file is a sequence of TFRecords (length, its masked CRC-32C, data, its masked CRC-32C), each data a
`tensorflow.Event` protocol buffer.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def append_scalars(folder: Path, step: int, scalars: dict[str, float]) -> None:
    """Append one event with all `scalars` at `step` to the folder's event file, created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.out.tfevents.mammod"
    now = struct.pack("<d", time.time())
    with path.open("ab") as file:
        if file.tell() == 0:
            file.write(_record(b"\x09" + now + _bytes_field(3, b"brain.Event:2")))
        values = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in scalars.items()
        )
        # Event: wall_time = 1 (double), step = 2 (varint), summary = 5
        file.write(_record(b"\x09" + now + b"\x10" + _varint(step) + _bytes_field(5, values)))
        file.flush()
        os.fsync(file.fileno())


def _bytes_field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ _POLYNOMIAL * (crc & 1)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
