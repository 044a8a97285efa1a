"""PDUs on the wire (PS3.8 9.3): their headers, items and fragments, and whether the lengths agree."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

PDU_HEADER = struct.Struct(">BBL")  # type, reserved, length of what follows (PS3.8 9.3.1)
A_ASSOCIATE_RQ, P_DATA_TF = 1, 4  # types
_ITEM_HEADER = struct.Struct(">BBH")  # type, reserved, length of what follows (PS3.8 9.3.2)
_FIXED_PART = 68  # bytes of an A-ASSOCIATE-RQ before its items, after the header
_PDV_HEADER = struct.Struct(">LB")  # length of what follows, presentation context (PS3.8 9.3.5.1)

# A-ABORT from the service provider (source 2); reasons by PS3.8 table 9-26.
UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6


def abort_pdu(reason: int) -> bytes:
    """Return an A-ABORT PDU of the service provider (PS3.8 9.3.8)."""
    return bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, reason))


def fragments(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield presentation context and message fragment (with control header) of each PDV (PS3.8 9.3.5).

    Raises:
        ValueError: the PDVs do not fill the PDU.
    """
    at = 0
    while at < len(body):
        if at + _PDV_HEADER.size > len(body):
            raise ValueError
        length, context_id = _PDV_HEADER.unpack_from(body, at)
        end = at + 4 + length
        if length < 2 or end > len(body):
            raise ValueError
        yield context_id, body[at + _PDV_HEADER.size : end]
        at = end


def check_request(body: bytes) -> None:
    """Check that the items of an A-ASSOCIATE-RQ, and their items, fill what holds them (PS3.8 9.3.2).

    Raises:
        ValueError: they do not.
    """
    before = {0x20: 4, 0x50: 0}  # bytes before the items: a presentation context has its id there
    for kind, item in _items(body, _FIXED_PART):
        if kind in before:
            deque(_items(item, before[kind]), 0)


def _items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at != len(data):
        if at + _ITEM_HEADER.size > len(data):
            raise ValueError
        kind, _, length = _ITEM_HEADER.unpack_from(data, at)
        start, at = at + _ITEM_HEADER.size, at + _ITEM_HEADER.size + length
        if at > len(data):
            raise ValueError
        yield kind, data[start:at]
