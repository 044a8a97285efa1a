"""`Store`: shared storage for the spool of several nodes, such as a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A file of the spool: its path in the spool, size in bytes, last write in seconds since the epoch."""

    path: str
    size: int
    modified: float


class Store(Protocol):
    """Shared storage for the spool's files, by their paths in the spool. Thread-safe.

    Raises:
        SpoolUnavailable: the storage cannot be reached or fails; any method may raise it.
    """

    def check(self) -> None:
        """Refuse if an attempt failed a moment ago, so that senders are not held up one by one."""

    def put(self, path: str, file: Path) -> None:
        """Store a file; return once it is certain that the storage holds these bytes."""

    def get(self, path: str, file: Path) -> bool:
        """Write what is stored as `path` into `file`, verified; return False if nothing is."""

    def modified(self, path: str) -> float | None:
        """Return when `path` was last written, in seconds since the epoch; None if there is no such file."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """Yield every file below `folder`."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; one that is not there is not an error."""

    def probe(self, folder: Path) -> None:
        """Write, read, list and delete a file, as the spool will; `folder` is for temporary files."""
