"""The digest of an instance's data set, which identifies its content and proves that a file is undamaged.

It is BLAKE3, written as "blake3-" and base64url (50 characters): SHA-256 took a third of the time in which a
large image is received. Older ledgers hold SHA-256 in hexadecimal; such digests are compared as SHA-256.
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
    """The digest of all bytes passed to `update`; `str` gives it in the form that the ledger holds."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes of the data set."""
        self._hash.update(data)

    def __str__(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(self._hash.digest()).decode().rstrip("=")


def digest_of(file: Path) -> str:
    """Return the digest of a Part 10 file's data set, which leaves out the file meta information."""
    digest = DataSetDigest()
    _read_data_set(file, digest)
    return str(digest)


def has_digest(file: Path, digest: str) -> bool:
    """Return whether the data set of a Part 10 file has this digest, BLAKE3 or SHA-256."""
    return digest == (sha256_of(file) if is_sha256(digest) else digest_of(file))


def is_sha256(digest: str) -> bool:
    """Return whether an older version of mammod wrote this digest."""
    return len(digest) == SHA256_LENGTH


def sha256_of(file: Path) -> str:
    """Return the digest of a Part 10 file's data set as older versions of mammod wrote it, in hexadecimal."""
    sha256 = hashlib.sha256()
    _read_data_set(file, sha256)
    return sha256.hexdigest()


def _read_data_set(path: Path, into: _Hash) -> None:
    with path.open("rb") as file:
        # PS3.10 7.1: preamble 128 bytes, "DICM" 4, then (0002,0000) UL: header 8, length of the rest of the
        # group 4.
        header = file.read(FILE_META_START)
        file.seek(FILE_META_START + int.from_bytes(header[-4:], "little"))
        while chunk := file.read(READ_SIZE):
            into.update(chunk)
