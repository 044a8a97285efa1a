"""Seeded nonsense of hostile peers on all layers of PS3.8, from random bytes to nearly valid messages."""

from __future__ import annotations

import random
import struct

from tests.support import wire
from tests.support.scu import encode, mammogram

UID = mammogram().SOPInstanceUID
GOOD = encode(mammogram(size=16))
REQUEST = wire.association_request()
RELEASE, ABORT = wire.pdu(5, bytes(4)), wire.pdu(7, bytes(4))
_LENGTHS = [0, 1, 2, 5, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def talk(chance: random.Random) -> bytes:
    """All that one connection sends."""
    return chance.choice([_noise, _damaged_request, _out_of_state, _damaged_messages, _contexts, _commands])(chance)


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([1, 5, 6, 7, 100, 5000]))


def _damaged_request(chance: random.Random) -> bytes:
    request = bytearray(REQUEST)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(request))
        how = chance.randrange(4)
        if how == 0:
            request[at] = chance.randrange(256)
        elif how == 1:
            request[at : at + 2] = struct.pack(">H", chance.choice(_LENGTHS) & 0xFFFF)
        elif how == 2:
            del request[at : at + chance.randrange(1, 40)]
        else:
            request[at:at] = request[at : at + chance.randrange(1, 40)]
    if chance.random() < 0.7:  # so that it is not simply cut
        request[2:6] = struct.pack(">I", len(request) - 6)
    return bytes(request) + chance.choice([b"", RELEASE, _message(GOOD)])


def _out_of_state(chance: random.Random) -> bytes:
    said = [
        REQUEST,
        RELEASE,
        ABORT,
        _message(GOOD),
        wire.pdu(2, REQUEST[6:]),
        wire.pdu(3, bytes(4)),
        wire.pdu(6, bytes(4)),
        _echo(),
    ]
    first = REQUEST if chance.random() < 0.7 else b""
    return first + b"".join(chance.choice(said) for _ in range(chance.randint(1, 5)))


def _damaged_messages(chance: random.Random) -> bytes:
    said = bytearray(b"".join(chance.choice([_message(GOOD), _echo()]) for _ in range(chance.randint(1, 3))))
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(min(len(said), 400))
        size = chance.choice([1, 2, 4])
        said[at : at + size] = struct.pack("<I", chance.choice([*_LENGTHS, chance.randrange(1 << 32)]))[:size]
    return REQUEST + bytes(said) + RELEASE


def _contexts(chance: random.Random) -> bytes:
    """Fragments whose presentation context and message control header are anything."""
    fragments = [
        (
            chance.choice([0, 1, 2, 3, 5, 255]),
            chance.randrange(256),
            chance.choice([b"", b"x", wire.store_command(UID), GOOD]),
        )
        for _ in range(chance.randint(1, 6))
    ]
    whole = chance.random() < 0.5
    return REQUEST + (wire.p_data(*fragments) if whole else b"".join(wire.p_data(part) for part in fragments)) + RELEASE


def _commands(chance: random.Random) -> bytes:
    """Command sets with missing, repeated, absurd elements."""
    number = chance.choice(
        [0x0001, 0x8001, 0x0020, 0x0021, 0x0010, 0x0030, 0x0100, 0x0110, 0x0130, 0x0140, 0x0FFF, 0x7777]
    )
    elements = [
        (0x0002, chance.choice([b"1.2.840.10008.5.1.4.1.1.1.2\0", b"", b"x" * 300])),
        (0x0100, struct.pack("<H", number)),
        (0x0110, chance.choice([struct.pack("<H", 1), b"", b"\1\2\3\4"])),
        (0x0120, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", chance.randrange(65536))),
        (0x0800, struct.pack("<H", chance.choice([0x0101, 1, 0]))),
        (0x0900, struct.pack("<H", 0)),
        (0x1000, chance.choice([UID.encode(), b"../../etc/passwd", b"1.2.3\\1.2.4", b"\xff" * 20])),
        (0x1002, struct.pack("<H", 1)),
    ]
    chosen = [element for element in elements if chance.random() < 0.8]
    data = b"" if chance.random() < 0.4 else wire.p_data((1, 2, chance.choice([GOOD, b"", chance.randbytes(60)])))
    return (
        REQUEST + wire.p_data((1, 3, wire.command(*chosen))) + data + chance.choice([b"", RELEASE, _echo() + RELEASE])
    )


def _message(content: bytes) -> bytes:
    return wire.p_data((1, 3, wire.store_command(UID))) + wire.p_data((1, 2, content))


def _echo() -> bytes:
    return wire.p_data((3, 3, wire.echo_command()))
