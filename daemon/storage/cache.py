"""Local copies of what a shared store holds: fetched when read, least recently used evicted first."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.storage.filesystem import make_parent, sync
from daemon.storage.store import Entry, Store

SLACK = 0.1  # of the cache's size: how far it may run over before copies are evicted, and how much is freed then


class Cache:
    """The copies in a spool's directory of what `store` holds. Thread-safe.

    `entries` lists the copies. They take about `size` bytes; copies that are held are never evicted.
    """

    def __init__(self, directory: Path, store: Store, size: int, entries: Callable[[], Iterable[Entry]]) -> None:
        self._directory = directory
        self._store = store
        self._size = size
        self._entries = entries
        self._added = float("inf")  # bytes added since copies were last evicted
        self._held: Counter[str] = Counter()
        self._gate = threading.Lock()
        self._evicting = threading.Lock()

    def upload(self, relative: str, size: int) -> None:
        """Store the file at `relative`, of `size` bytes, which stays here as a copy.

        Raises:
            SpoolUnavailable: see `Store`.
        """
        self._store.put(relative, self._directory / relative)
        self._evict(size)

    def fetch(self, relative: str) -> Path:
        """Return the copy of a held file, fetched if missing; nothing is at the path if the store has none.

        Raises:
            SpoolUnavailable: see `Store`.
            OSError: the copy cannot be written.
        """
        final = self._directory / relative
        try:
            os.utime(final)  # evicted last
        except FileNotFoundError:
            self._download(relative, final)
        return final

    def _download(self, relative: str, final: Path) -> None:
        make_parent(final)
        descriptor, name = tempfile.mkstemp(suffix=".tmp", dir=final.parent)
        os.close(descriptor)
        try:
            if self._store.get(relative, Path(name)):
                sync(Path(name))  # or a power cut might leave half a copy under its name
                Path(name).rename(final)
                self._evict(final.stat().st_size)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def hold(self, relative: str) -> Iterator[None]:
        """Keep the copy at `relative` from being evicted until the block ends."""
        with self._gate:
            self._held[relative] += 1
        try:
            yield
        finally:
            with self._gate:
                self._held[relative] -= 1
                self._held += Counter()  # drops zero counts

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Path]]:
        """Yield a function that fetches and holds a file until the block ends (see `fetch`)."""
        with contextlib.ExitStack() as held:

            def file_of(relative: str) -> Path:
                held.enter_context(self.hold(relative))
                return self.fetch(relative)

            yield file_of

    def _evict(self, added: int) -> None:
        """Count `added` bytes; evict least recently used copies if all take more than the cache's size."""
        with self._gate:
            self._added += added
            enough = self._added <= SLACK * self._size
        if enough or not self._evicting.acquire(blocking=False):
            return
        try:
            with self._gate:
                self._added = 0
            copies = sorted(self._entries(), key=lambda entry: entry.modified)
            excess = sum(entry.size for entry in copies) - (1 - SLACK) * self._size
            for entry in copies:
                if excess <= 0:
                    break
                with self._gate:
                    if self._held[entry.path]:
                        continue
                    (self._directory / entry.path).unlink(missing_ok=True)
                excess -= entry.size
        finally:
            self._evicting.release()
