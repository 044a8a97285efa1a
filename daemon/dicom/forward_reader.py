"""Reads a received data set forward only, plain or deflated (PS3.5 A.5), in bounded memory."""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO, Protocol

from daemon.dicom.status import CANNOT_UNDERSTAND
from daemon.errors import RefusedInstance

MAX_INFLATED = 512 << 20  # bytes: readers inflate a deflated data set whole; a bomb of 512 kB inflates to this
MAX_AFTER_DEFLATED = 9  # bytes: a byte of padding, and the gzip trailer that some writers leave


class CutError(Exception):
    """The bytes end, after so many, within an element or item."""


class ForwardReader(Protocol):
    """The bytes of a data set, from its first to its last.

    Raises:
        CutError: `read` or `skip` asked for more bytes than there are.
        RefusedInstance: C000, the data set cannot be inflated, or inflates to more than `MAX_INFLATED` bytes.
    """

    position: int  # bytes (inflated ones) from the start of the data set

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes."""

    def skip(self, count: int) -> None:
        """Move past the next `count` bytes."""

    def at_end(self) -> bool:
        """Return whether no byte is left."""


class StoredReader:
    """Reads a data set that is not compressed as a whole."""

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file
        start = file.tell()
        self._size = file.seek(0, os.SEEK_END) - start
        file.seek(start)

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data = self._file.read(count)
        self.position += count
        if len(data) < count:
            raise CutError(self._size)
        return data

    def skip(self, count: int) -> None:
        """Move past the next `count` bytes."""
        self.position += count
        if self.position > self._size:
            raise CutError(self._size)
        self._file.seek(count, os.SEEK_CUR)

    def at_end(self) -> bool:
        """Return whether no byte is left."""
        return self.position >= self._size


class InflatingReader:
    """Reads a deflated data set (RFC 1951, no header); one inflated block at a time is in memory."""

    BLOCK = 1 << 16  # bytes

    def __init__(self, file: BinaryIO) -> None:
        self.position = 0
        self._file = file
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._block = b""
        self._used = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        parts = []
        while count:
            if self._used == len(self._block) and not self._next_block():
                raise CutError(self.position)
            part = self._block[self._used : self._used + count]
            parts.append(part)
            self._advance(len(part))
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Move past the next `count` bytes."""
        while count:
            if self._used == len(self._block) and not self._next_block():
                raise CutError(self.position)
            step = min(count, len(self._block) - self._used)
            self._advance(step)
            count -= step

    def at_end(self) -> bool:
        """Return whether no byte is left."""
        return self._used == len(self._block) and not self._next_block()

    def _advance(self, count: int) -> None:
        self._used += count
        self.position += count
        if self.position > MAX_INFLATED:
            raise RefusedInstance(
                CANNOT_UNDERSTAND, f"the deflated data set inflates to more than {MAX_INFLATED} bytes"
            )

    def _next_block(self) -> bool:
        """Inflate the next block; return False at the end of the deflate stream."""
        try:
            while not self._inflate.eof:
                data = self._inflate.unconsumed_tail or self._file.read(self.BLOCK)
                self._block, self._used = self._inflate.decompress(data, self.BLOCK), 0
                if self._block:
                    return True
                if not data:
                    raise CutError(self.position)
        except zlib.error as error:
            raise RefusedInstance(
                CANNOT_UNDERSTAND,
                f"the data set cannot be inflated after byte {self.position}: it is damaged or not deflated",
            ) from error
        if len(self._inflate.unused_data + self._file.read(MAX_AFTER_DEFLATED + 1)) > MAX_AFTER_DEFLATED:
            raise RefusedInstance(CANNOT_UNDERSTAND, "there are bytes after the end of the deflated data set")
        return False
