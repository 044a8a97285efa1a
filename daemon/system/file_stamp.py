"""The stamp of a file: tells that a file was replaced or written to, without reading it."""

from __future__ import annotations

from pathlib import Path

FileStamp = tuple[int, int, int]  # modification time in nanoseconds, size in bytes, inode


def file_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of the file at `path`, None if there is none or it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
