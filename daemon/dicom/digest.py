"""The digest of an instance's data set, by which content is told apart and a file is found to be whole.

BLAKE3, written "blake3-" and base64url (50 characters): with sha256 a third of the time in which a large image is received went
into it. Older ledgers hold sha256, in hexadecimal; those are compared by what they are.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Protocol

from blake3 import blake3

PREFIX = "blake3-"
SHA256_LENGTH = 64  # characters
READ_SIZE = 1 << 20  # bytes
FILE_META_START = 128 + 4 + 8 + 4  # bytes


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


class DataSetDigest:
    """Of what it is updated with."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, data: bytes | memoryview) -> None:
        self._hash.update(data)

    def __str__(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(self._hash.digest()).decode().rstrip("=")


def digest_of(file: Path) -> str:
    """Of the data set of a Part 10 file; not of its file meta information, which names who wrote the file."""
    digest = DataSetDigest()
    _read_data_set(file, digest)
    return str(digest)


def has_digest(file: Path, digest: str) -> bool:
    """Whether that is the digest of the data set of a Part 10 file, of whichever kind it is."""
    return digest == (sha256_of(file) if is_sha256(digest) else digest_of(file))


def is_sha256(digest: str) -> bool:
    """Whether it is a digest as older versions of mammod wrote it."""
    return len(digest) == SHA256_LENGTH


def sha256_of(file: Path) -> str:
    """As older versions of mammod wrote it."""
    sha256 = hashlib.sha256()
    _read_data_set(file, sha256)
    return sha256.hexdigest()


def _read_data_set(path: Path, into: _Hash) -> None:
    with path.open("rb") as file:
        # PS3.10 7.1: preamble 128, "DICM" 4, then (0002,0000) UL: 8 bytes of header and the length of the rest of the group
        header = file.read(FILE_META_START)
        file.seek(FILE_META_START + int.from_bytes(header[-4:], "little"))
        while chunk := file.read(READ_SIZE):
            into.update(chunk)
