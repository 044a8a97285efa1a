"""The spool: accepted instances and written reports as Part 10 files, each written once and durable before anyone is told.

Layout, all of it derived from digests, never from a UID off the wire:
    incoming/                    being received; swept at start
    instances/ab/<digest>.dcm    accepted, named by SOP Instance UID and content
    outbox/ab/<digest>.dcm       our reports, named by SOP Instance UID
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import RefusedInstance

OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # passes when space is made
READ_SIZE = 1 << 20  # bytes
FILE_META_START = 128 + 4 + 8 + 4  # bytes


@dataclass(frozen=True)
class Placed:
    """A durable file of the spool: `path` relative to its directory, sha256 `digest` of its data set, `size` in bytes."""

    path: str
    digest: str
    size: int


class Spool:
    """The spool directory. Directories are 0700 and files 0600, whatever the umask."""

    def __init__(self, directory: Path, min_free: int = 0) -> None:
        self.directory = directory.absolute()
        self.min_free = min_free
        self.incoming = self.directory / "incoming"
        for folder in (self.directory, self.incoming, self.directory / "instances", self.directory / "outbox"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)

    def free(self) -> int:
        """Bytes that the service may still fill."""
        return shutil.disk_usage(self.directory).free

    def check_room(self) -> None:
        """Refuse with A700 while less than `min_free` is left, so that finishing what is here stays possible.

        Raises:
            RefusedInstance: status A700.
        """
        free = self.free()
        if free < self.min_free:
            raise RefusedInstance(
                OUT_OF_RESOURCES,
                f"the spool has {free // 2**20} MiB free and [spool] min_free asks for {self.min_free // 2**20} MiB; "
                "make room or lower it",
            )

    def place(self, received: Path, sop_instance_uid: str) -> Placed:
        """Make a received file durable under its final name; `received` (in the same file system) stays for its owner.

        The same content under the same UID has the same name, so placing it twice is harmless.
        """
        digest, size = content_digest(received)
        relative = _relative("instances", f"{sop_instance_uid}\0{digest}")
        final = self.directory / relative
        _make_parent(final)
        received.chmod(0o600)
        _sync(received)
        with contextlib.suppress(FileExistsError):
            os.link(received, final)
        os.utime(final)  # retention takes an old file without a row away, which this one may have been
        _sync(final.parent)
        return Placed(relative, digest, size)

    def write_report(self, sop_instance_uid: str, content: bytes) -> Placed:
        """Write one of our reports durably; the same UID overwrites (the same work done again after a crash)."""
        relative = _relative("outbox", sop_instance_uid)
        final = self.directory / relative
        _make_parent(final)
        temporary = final.with_suffix(f".{os.getpid()}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
        except OSError:  # disk full: half a report must not keep the room that is left
            temporary.unlink(missing_ok=True)
            raise
        _sync(final.parent)
        return Placed(relative, hashlib.sha256(content).hexdigest(), len(content))

    def absolute(self, relative: str) -> Path:
        return self.directory / relative

    def remove(self, relative_paths: Iterable[str]) -> int:
        """Remove files of forgotten rows; returns how many were there."""
        removed = 0
        for relative in relative_paths:
            path = self.directory / relative
            removed += path.exists()
            path.unlink(missing_ok=True)
        return removed

    def sweep(self, known: set[str]) -> int:
        """At start: remove half-received files and files that no row of the ledger knows; returns how many.

        A file without a row was never answered with success, so its sender sends it again.
        """
        orphans = [path for path in self.incoming.iterdir() if path.is_file()]
        orphans += [path for path in self.files() if str(path.relative_to(self.directory)) not in known]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def files(self) -> list[Path]:
        """Every file of an instance or report, whether a row knows it or not."""
        return [
            path for name in ("instances", "outbox") for path in (self.directory / name).rglob("*") if path.is_file()
        ]


def _relative(folder: str, identity: str) -> str:
    name = hashlib.sha256(identity.encode()).hexdigest()
    return f"{folder}/{name[:2]}/{name}.dcm"


def _make_parent(path: Path) -> None:
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent.parent)


def content_digest(path: Path) -> tuple[str, int]:
    """Sha256 of the data set alone (the file meta information names who wrote the file), and the file's size."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        # PS3.10 7.1: preamble 128, "DICM" 4, then (0002,0000) UL: 8 bytes of header and the length of the rest of the group
        header = file.read(FILE_META_START)
        file.seek(FILE_META_START + int.from_bytes(header[-4:], "little"))
        while chunk := file.read(READ_SIZE):
            sha256.update(chunk)
        return sha256.hexdigest(), file.tell()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
