"""The spool: accepted instances and written reports as Part 10 files, durable before anyone is told of them.

Its layout is derived from digests, never from a received UID:
    incoming/<process>/          being received by that process; deleted when the process is gone
    instances/ab/<digest>.dcm    accepted, named by SOP Instance UID and content
    outbox/ab/<digest>.dcm       our reports, named by SOP Instance UID

The spool is a directory, or a bucket with the same paths (`S3Store`). With a bucket a file counts as spooled
once the bucket holds it, and the directory has copies (`Cache`), any of which may be evicted and fetched
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config import settings as config
from daemon.dicom.digest import digest_of
from daemon.dicom.status import OUT_OF_RESOURCES
from daemon.errors import RefusedInstance, SpoolUnavailable
from daemon.storage import filesystem
from daemon.storage.cache import Cache
from daemon.storage.store import Entry, Store

INSPECTED_PREFIX = "look-"  # begins the name of a folder with a file that is fetched only to be inspected
FOLDERS = ("instances", "outbox")


@dataclass(frozen=True)
class SpoolFile:
    """A durable file of the spool: `path` in the spool, `size` in bytes.

    `digest` is that of an instance's data set (`daemon.dicom.digest`), or SHA-256 of a whole report.
    """

    path: str
    digest: str
    size: int


def open_spool(settings: config.Spool) -> Spool:
    """Open the spool of the settings.

    Raises:
        OSError: the directory cannot be made.
        ConfigurationError: see `S3Store`.
    """
    if settings.url is None:
        return Spool(settings.directory, settings.min_free)
    from daemon.storage.s3_store import S3Store

    return Spool(settings.directory, settings.min_free, S3Store(settings), settings.cache)


class Spool:
    """The spool directory, or with `store` that of a bucket.

    Directories are 0700 and files 0600, whatever the umask. At least `min_free` bytes of the disk are left
    free. Copies of what the bucket holds take about `cache` bytes, not counting those that are being read.
    `syncs_names`: see `filesystem.syncs_names`.

    Raises:
        SpoolUnavailable: the bucket cannot be used; every method may raise it.
    """

    def __init__(self, directory: Path, min_free: int = 0, store: Store | None = None, cache: int = 0) -> None:
        self.directory = directory.absolute()
        self.min_free = min_free
        self.store = store
        self.incoming = self.directory / "incoming"
        for folder in (self.directory, self.incoming, *(self.directory / name for name in FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        for name in FOLDERS:
            filesystem.make_parents(self.directory / name)
        self.syncs_names = filesystem.syncs_names(self.directory)
        self._cache = Cache(self.directory, store, cache, self._local_entries) if store is not None else None

    def free(self) -> int:
        """Return how many bytes are free on the directory's disk."""
        return shutil.disk_usage(self.directory).free

    def check_room(self) -> None:
        """Refuse while less than `min_free` is left or the bucket is away, so that jobs here can be finished.

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
        """Return why no instance can be taken now, None if one can."""
        try:
            self.check_room()
        except RefusedInstance as refused:
            return refused.reason
        return None

    def add_instance(self, received: Path, sop_instance_uid: str, digest: str | None = None) -> SpoolFile:
        """Make `received` (in the same file system) durable under its final name; it keeps its own name, too.

        The same content under the same UID has the same name, so adding it twice is harmless. A bucket gets
        the file even if it has it, which makes it young there, too. `digest` is that of the data set, if it
        is known.
        """
        if digest is None:
            digest = digest_of(received)
        relative = _relative("instances", f"{sop_instance_uid}\0{digest}")
        final = self.directory / relative
        received.chmod(0o600)
        with self._held(relative):
            # The name first: one commit of the file system's journal then syncs both.
            is_new = filesystem.link(received, final)
            size = filesystem.sync(received)
            if not (is_new and self.syncs_names):
                filesystem.sync(final.parent)
            self._upload(relative, size)
        return SpoolFile(relative, digest, size)

    def write_report(self, sop_instance_uid: str, content: bytes) -> SpoolFile:
        """Write one of our reports durably; the same UID overwrites (work done again after a crash)."""
        relative = _relative("outbox", sop_instance_uid)
        filesystem.write_durably(self.directory / relative, content)
        with self._held(relative):
            self._upload(relative, len(content))
        return SpoolFile(relative, hashlib.sha256(content).hexdigest(), len(content))

    def _held(self, relative: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._cache is None else self._cache.hold(relative)

    def _upload(self, relative: str, size: int) -> None:
        if self._cache is not None:
            self._cache.upload(relative, size)

    def absolute(self, relative: str) -> Path:
        """Return where the directory has the file, or would have its copy."""
        return self.directory / relative

    def has(self, relative: str) -> bool:
        """Return whether the spool has the file; a copy alone does not count."""
        if self.store is None:
            return self.absolute(relative).is_file()
        return self.store.modified(relative) is not None

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Path]]:
        """Yield a function that returns a local path for a file of the spool, valid until the block ends.

        If the spool does not have the file, nothing is at that path.
        """
        if self._cache is None:
            yield self.absolute
            return
        with self._cache.reading() as file_of:
            yield file_of

    @contextmanager
    def as_stored(self, relative: str) -> Iterator[Path]:
        """Yield a path to the file as the directory or bucket itself has it, never to a cached copy."""
        if self.store is None:
            yield self.absolute(relative)
            return
        with tempfile.TemporaryDirectory(prefix=INSPECTED_PREFIX, dir=self.incoming) as folder:
            path = Path(folder) / "object.dcm"
            if not self.store.get(relative, path):
                path.unlink()
            yield path

    def delete(self, relative_paths: Iterable[str]) -> int:
        """Delete files whose rows are gone; return how many there were (in a bucket: how many were named)."""
        paths = list(relative_paths)
        deleted = 0
        for relative in paths:
            path = self.directory / relative
            deleted += path.exists()
            path.unlink(missing_ok=True)
        if self.store is not None:
            self.store.delete(paths)
            return len(paths)
        return deleted

    def receiving_folder(self, process: str) -> Path:
        """Return the folder of what a process is receiving, made if missing; `process` has no slash."""
        folder = self.incoming / process
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def receiving_processes(self) -> set[str]:
        """Return the names in `incoming`: of processes that receive, and of files of an earlier version."""
        return {path.name for path in self.incoming.iterdir() if not path.name.startswith(INSPECTED_PREFIX)}

    def delete_receiving(self, processes: Iterable[str]) -> int:
        """Delete what ended processes were receiving (no sender was told success); return how many files."""
        deleted = 0
        for name in processes:
            path = self.incoming / name
            deleted += sum(file.is_file() for file in path.rglob("*")) if path.is_dir() else path.exists()
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return deleted

    def delete_orphans(self, known: set[str], before: float) -> int:
        """Delete files last written before `before` that no row of the ledger knows; return how many.

        Call it at start, if no other node runs. A file without a row was never answered with success, so its
        sender sends it again. `before` is a time of this file system (a modification time), after which
        another node may have started. Files in a bucket stay: `daemon.maintenance.retention.delete_orphans`
        deletes them once old.
        """
        if self.store is not None:
            return 0
        orphans = [entry.path for entry in self._local_entries() if entry.path not in known and entry.modified < before]
        return self.delete(orphans)

    def entries(self) -> list[Entry]:
        """Return every file of an instance or report, whether a row knows it or not."""
        if self.store is None:
            return self._local_entries()
        return [entry for name in FOLDERS for entry in self.store.entries(name)]

    def written_before(self, before: float) -> list[str]:
        """Return the paths last written before that time, copies included: among them are all orphans."""
        copies = [] if self.store is None else self._local_entries()
        return list(dict.fromkeys(entry.path for entry in [*self.entries(), *copies] if entry.modified < before))

    def modified(self, relative: str) -> float | None:
        """Return when a file was last written or its copy read, in seconds since the epoch, or None."""
        times = [] if self.store is None else [self.store.modified(relative)]
        with contextlib.suppress(FileNotFoundError):  # a file that is being written is renamed at any time
            times.append(self.absolute(relative).stat().st_mtime)
        return max((time for time in times if time is not None), default=None)

    def _local_entries(self) -> list[Entry]:
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
