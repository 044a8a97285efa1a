"""The spool: accepted instances and written reports as Part 10 files, each written once and durable before anyone is told.

Layout, all of it derived from digests, never from a UID off the wire:
    incoming/<process>/          being received by that process; swept when it is gone
    instances/ab/<digest>.dcm    accepted, named by SOP Instance UID and content
    outbox/ab/<digest>.dcm       our reports, named by SOP Instance UID

The place is a directory, or a bucket under the same paths (`S3Store`). Then a file is in the spool once the bucket has
it, and the directory holds copies: any of them may go and is fetched again when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config import settings
from daemon.dicom.digest import digest_of
from daemon.errors import RefusedInstance, SpoolUnavailable

if TYPE_CHECKING:
    from daemon.storage.s3_store import S3Store

OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # passes when space is made
READ_SIZE = 1 << 20  # bytes
LOOKED_AT = "look-"  # begins the name of what is fetched only to be looked at
FOLDERS = ("instances", "outbox")
# File systems that note a file and its new name in one transaction of their journal, which an fsync of the file waits for: the
# one of its folder, which POSIX asks for, would find nothing left to write, and wait for the disk once more.
SYNCS_NAMES = ("ext4", "xfs")
EXT4_JOURNAL = "/proc/fs/jbd2/{device}-8"  # inode 8 is the journal's, where it lies in the file system itself
CACHE_SLACK = 0.1  # of the cache: how far it may run over before it is looked at, and how much goes then


@dataclass(frozen=True)
class Placed:
    """A durable file of the spool: `path` relative to its directory, `size` in bytes.

    `digest` is that of an instance's data set (`daemon.dicom.digest`), or sha256 of a whole report.
    """

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A file of the spool: its path, bytes, and when it was last written (seconds since the epoch)."""

    path: str
    size: int
    modified: float


def open_spool(chosen: settings.Spool) -> Spool:
    """The spool of the settings.

    Raises:
        OSError: the directory cannot be made.
        ConfigurationError: see `S3Store`.
    """
    if chosen.url is None:
        return Spool(chosen.directory, chosen.min_free)
    from daemon.storage.s3_store import S3Store

    return Spool(chosen.directory, chosen.min_free, S3Store(chosen), chosen.cache)


class Spool:
    """The spool directory, with `store` that of a bucket. Directories are 0700 and files 0600, whatever the umask.

    `syncs_names`: to sync a file there is to sync a name that it was just given.

    Copies of what the bucket has take about `cache` bytes of the directory; what is being read is not counted. Where the
    bucket does not do its part, every method raises SpoolUnavailable.
    """

    def __init__(self, directory: Path, min_free: int = 0, store: S3Store | None = None, cache: int = 0) -> None:
        self.directory = directory.absolute()
        self.min_free = min_free
        self.store = store
        self.incoming = self.directory / "incoming"
        for folder in (self.directory, self.incoming, *(self.directory / name for name in FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for name in FOLDERS:
            _make_parents(self.directory / name)
        self.syncs_names = _syncs_names(self.directory)
        self._cache = cache
        self._unseen = float("inf")  # bytes that came since the copies were last looked at
        self._held: Counter[str] = Counter()
        self._gate = threading.Lock()
        self._evicting = threading.Lock()

    def free(self) -> int:
        """Bytes that the service may still fill."""
        return shutil.disk_usage(self.directory).free

    def check_room(self) -> None:
        """Refuse with A700 while less than `min_free` is left, so that finishing what is here stays possible, or while the
        bucket is away.

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
        if self.store is not None:
            try:
                self.store.check()
            except SpoolUnavailable as error:
                raise RefusedInstance(OUT_OF_RESOURCES, str(error)) from error

    def full(self) -> str | None:
        """Why nothing more can be taken now, if it cannot."""
        try:
            self.check_room()
        except RefusedInstance as refused:
            return refused.reason
        return None

    def place(self, received: Path, sop_instance_uid: str, digest: str | None = None) -> Placed:
        """Make a received file durable under its final name; `received` (in the same file system) stays for its owner.

        The same content under the same UID has the same name, so placing it twice is harmless. A bucket is given it even
        where it has it: so it is young there, too. `digest` is that of the data set where it is known.
        """
        if digest is None:
            digest = digest_of(received)
        relative = _relative("instances", f"{sop_instance_uid}\0{digest}")
        final = self.directory / relative
        received.chmod(0o600)
        with self._hold(relative):
            # The name first: one commit of the file system's journal then does for both.
            is_new = _link(received, final)
            size = _sync(received)
            if not (is_new and self.syncs_names):
                _sync(final.parent)
            self._share(relative, size)
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
        with self._hold(relative):
            self._share(relative, len(content))
        return Placed(relative, hashlib.sha256(content).hexdigest(), len(content))

    def _share(self, relative: str, size: int) -> None:
        if self.store is not None:
            self.store.put(relative, self.absolute(relative))
            self._make_room(size)

    def absolute(self, relative: str) -> Path:
        """Where the directory has it, or its copy if there is one."""
        return self.directory / relative

    def has(self, relative: str) -> bool:
        if self.store is None:
            return self.absolute(relative).is_file()
        return self.store.modified(relative) is not None

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Path]]:
        """Gives `file_of(relative)`, the file to read, which is there until the block ends; fetched where it is not here.

        A file that the spool does not have has a path nevertheless, where nothing is.
        """
        if self.store is None:
            yield self.absolute
            return
        with contextlib.ExitStack() as held:

            def file_of(relative: str) -> Path:
                held.enter_context(self._hold(relative))
                final = self.absolute(relative)
                try:
                    os.utime(final)  # the last to go
                except FileNotFoundError:
                    self._fetch(relative, final)
                return final

            yield file_of

    @contextmanager
    def as_stored(self, relative: str) -> Iterator[Path]:
        """The file as it lies in the place itself: never a copy that was here already."""
        if self.store is None:
            yield self.absolute(relative)
            return
        with tempfile.TemporaryDirectory(prefix=LOOKED_AT, dir=self.incoming) as folder:
            path = Path(folder) / "object.dcm"
            if not self.store.get(relative, path):
                path.unlink()
            yield path

    def _fetch(self, relative: str, final: Path) -> None:
        assert self.store is not None
        _make_parent(final)
        descriptor, name = tempfile.mkstemp(suffix=".tmp", dir=final.parent)
        os.close(descriptor)
        try:
            if self.store.get(relative, Path(name)):
                _sync(Path(name))  # or a power cut might leave half a copy under its name
                Path(name).rename(final)
                self._make_room(final.stat().st_size)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def _hold(self, relative: str) -> Iterator[None]:
        with self._gate:
            self._held[relative] += 1
        try:
            yield
        finally:
            with self._gate:
                self._held[relative] -= 1
                self._held += Counter()  # those above zero

    def _make_room(self, size: int) -> None:
        """So many bytes came: where copies take more than the cache, those go that were not read for longest."""
        with self._gate:
            self._unseen += size
            enough = self._unseen <= CACHE_SLACK * self._cache
        if enough or not self._evicting.acquire(blocking=False):
            return
        try:
            with self._gate:
                self._unseen = 0
            copies = sorted(self._files(), key=lambda entry: entry.modified)
            over = sum(entry.size for entry in copies) - (1 - CACHE_SLACK) * self._cache
            for entry in copies:
                if over <= 0:
                    break
                with self._gate:
                    if self._held[entry.path]:
                        continue
                    self.absolute(entry.path).unlink(missing_ok=True)
                over -= entry.size
        finally:
            self._evicting.release()

    def remove(self, relative_paths: Iterable[str]) -> int:
        """Remove files of forgotten rows; returns how many were there (in a bucket: how many were to go)."""
        paths = list(relative_paths)
        removed = 0
        for relative in paths:
            path = self.directory / relative
            removed += path.exists()
            path.unlink(missing_ok=True)
        if self.store is not None:
            self.store.remove(paths)
        return len(paths) if self.store is not None else removed

    def receive_in(self, process: str) -> Path:
        """The folder of what a process is receiving, made where it is not there; `process` is a name without a slash."""
        folder = self.incoming / process
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def receiving(self) -> set[str]:
        """The names of what lies in `incoming`: processes, and files of an earlier version."""
        return {path.name for path in self.incoming.iterdir() if not path.name.startswith(LOOKED_AT)}

    def sweep_receiving(self, names: Iterable[str]) -> int:
        """Remove these of `receiving`: their processes are gone, and nobody was told success; returns how many files."""
        removed = 0
        for name in names:
            path = self.incoming / name
            removed += sum(file.is_file() for file in path.rglob("*")) if path.is_dir() else path.exists()
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return removed

    def sweep(self, known: set[str], begun: float) -> int:
        """At start, with no other node: remove files that no row of the ledger knows, older than `begun`; returns how many.

        A file without a row was never answered with success, so its sender sends it again. `begun` is a time of this file
        system (a modification time), after which another node may have started. In a bucket they stay:
        `daemon.maintenance.retention.delete_orphans` removes them when they are old.
        """
        if self.store is not None:
            return 0
        orphans = [entry.path for entry in self._files() if entry.path not in known and entry.modified < begun]
        return self.remove(orphans)

    def entries(self) -> list[Entry]:
        """Every file of an instance or report, whether a row knows it or not."""
        if self.store is None:
            return self._files()
        return [entry for name in FOLDERS for entry in self.store.entries(name)]

    def strays(self, before: float) -> list[str]:
        """What was last written before that time, copies included: all that an interrupted arrival may have left."""
        copies = [] if self.store is None else self._files()
        return list(dict.fromkeys(entry.path for entry in [*self.entries(), *copies] if entry.modified < before))

    def modified(self, relative: str) -> float | None:
        """When a file was last written or a copy of it read, in seconds since the epoch; None where there is none."""
        times = [] if self.store is None else [self.store.modified(relative)]
        with contextlib.suppress(FileNotFoundError):  # one that is being written is renamed at any time
            times.append(self.absolute(relative).stat().st_mtime)
        return max((time for time in times if time is not None), default=None)

    def _files(self) -> list[Entry]:
        found = []
        for name in FOLDERS:
            for path in (self.directory / name).rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        stat = path.stat()
                        found.append(Entry(str(path.relative_to(self.directory)), stat.st_size, stat.st_mtime))
        return found


def _relative(folder: str, identity: str) -> str:
    name = hashlib.sha256(identity.encode()).hexdigest()
    return f"{folder}/{name[:2]}/{name}.dcm"


def _syncs_names(path: Path) -> bool:
    system = file_system_of(path)
    if system == "ext4":  # it may have been made without a journal
        device = path.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        return Path(EXT4_JOURNAL.format(device=name)).exists()
    return system in SYNCS_NAMES


def file_system_of(path: Path) -> str:
    """Its type by the mount table of Linux, such as "ext4"; "" where it is not told."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, system = line.partition(" - ")  # proc_pid_mountinfo(5)
            if mount.split(" ")[2] == number:
                return system.split(" ")[0]
    return ""


def _link(received: Path, final: Path) -> bool:
    """Give the file the name `final`, too. What has it already may be half of it, left by a power cut, or old.

    Whether the name is new.
    """
    try:
        os.link(received, final)
    except FileNotFoundError:
        if not received.exists():
            raise
        _make_parent(final)
        return _link(received, final)
    except FileExistsError:
        if final.samefile(received):  # placed again; a rename would leave both names
            os.utime(final)  # retention takes an old file without a row away, which this one may have been
            return False
        temporary = final.with_suffix(f".{secrets.token_hex(4)}.tmp")
        os.link(received, temporary)
        os.utime(temporary)
        temporary.rename(final)
        return False
    return True


def _make_parents(folder: Path) -> None:
    """All that `_relative` names below `folder`, once: made while an instance waits, each costs it a write to the disk."""
    missing = {f"{number:02x}" for number in range(256)} - {path.name for path in folder.iterdir()}
    for name in missing:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    if missing:
        _sync(folder)


def _make_parent(path: Path) -> None:
    if not path.parent.exists():
        _make_parents(path.parent.parent)


def _sync(path: Path) -> int:
    """Returns the size."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
