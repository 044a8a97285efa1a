"""Decoding, cutting and reading lesion objects in processes of their own, each with a limit of time and of memory.

So neither a codec nor an object that was made to hurt holds up the service or takes it down. Each process has one thing to
do at a time: what ends a process costs the object it worked on, and no other.
"""

from __future__ import annotations

import ctypes
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydicom import dcmread

from config import settings
from daemon.errors import DecoderKilled, DecoderUnavailable
from daemon.events import bus
from daemon.events.timings import Stage, used
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import read_lesions
from daemon.reports.display_image import View, view_of
from daemon.system.child_process import ChildProcess, TooLate, begin
from model.bundle import Manifest
from model.errors import ImageError
from model.image import open_image
from model.roi import Roi
from model.roi_extraction import Cut, cut_rois

TRIES = 3  # of an object whose process dies
STARTS = 3  # of a process, before the object waits for a better time
STOP_LIMIT_S = 30.0
BESIDE_RECEIVING = 5  # niceness: a sender that waits for its answer comes before work that can wait
KEPT = 256 << 20  # bytes, enough for one large image after the other
END_LIMIT_S = 10  # for a process that closed its pipe to be gone
START_LIMIT_S = 300  # for a new process to load its modules, on a machine that is busy


class DecoderPool:
    """`count` processes. An object whose process dies has two more tries; thread-safe.

    Every method raises DecoderUnavailable where no process can be started, and DecoderKilled where each was killed."""

    def __init__(self, count: int, manifest: Manifest, workers: settings.Workers) -> None:
        self._manifest = manifest
        self._decoders = [_Decoder(workers) for _ in range(count)]
        self._free: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self._lock = threading.Lock()
        self._waiting = 0
        self.trouble: str | None = None  # why no process could be started for the last object

    @property
    def expected(self) -> int:
        """How many processes there should be."""
        return len(self._decoders)

    @property
    def alive(self) -> int:
        """How many there are; one that died is begun anew when the next object comes."""
        return sum(decoder.pid is not None for decoder in self._decoders)

    @property
    def waiting(self) -> int:
        """Objects that wait for a free process."""
        return self._waiting

    def start(self) -> None:
        """Have the processes up and their modules loaded before the first image comes; does not wait for it."""
        for decoder in self._decoders:
            decoder.start()

    def cut(self, path: Path, cuts: Sequence[Cut]) -> list[Roi]:
        """The ROIs of one image file, one per cut, each frame decoded once.

        Raises:
            ImageError: the image cannot be decoded or cut, takes too long or too much memory, or took its process down.
        """
        return self._do(_cut_file, path, cuts, self._manifest)

    def view(self, path: Path, frame: int) -> View:
        """One frame of an image file as a small picture.

        Raises:
            ImageError: see `cut`.
        """
        return self._do(_view_file, path, frame)

    def read(
        self, source: Path, images: Mapping[str, Path], segmentations: Mapping[str, Path], lesions: settings.Lesions
    ) -> LesionReading:
        """The lesions of a SEG or SR file; `images` and `segmentations` that it names by SOP Instance UID.

        Raises:
            LesionError: see `daemon.lesions.reader.read_lesions`.
            ImageError: it takes too long or too much memory, or took its process down.
        """
        return self._do(_read_file, source, images, segmentations, lesions)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            self._waiting += 1
        decoder = self._free.get()
        with self._lock:
            self._waiting -= 1
        trouble = None
        try:
            return decoder.do(function, *arguments)
        except DecoderUnavailable as error:
            trouble = str(error)
            raise
        finally:
            self.trouble = trouble
            self._free.put(decoder)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let what is under way finish within `limit_s` seconds, then end the processes."""
        end = time.monotonic() + limit_s
        for decoder in self._decoders:
            decoder.end(end)


class _Decoder:
    """One process, begun anew when it had to end; one object at a time."""

    def __init__(self, workers: settings.Workers) -> None:
        self._workers = workers
        self._child: ChildProcess | None = None
        self._is_warm = False
        self._at_work = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        """The process's id while it lives."""
        return None if self._child is None else self._child.pid

    def start(self) -> ChildProcess:
        """Begin the process if there is none; does not wait until it has loaded its modules."""
        if self._child is None:
            self._child, self._is_warm = ChildProcess("mammod-decoder", _work, int(self._workers.decoder_memory)), False
        return self._child

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives in the process, or raises there.

        Raises:
            ImageError: it takes too long or too much memory, or took its process down `TRIES` times.
            DecoderKilled: somebody or the system ended each process by SIGKILL, which may be no fault of the object.
            DecoderUnavailable: no process can be started, or the pool was stopped.
        """
        limit = self._workers.decode_timeout_s
        killed = 0
        with self._at_work:
            for _ in range(TRIES):
                child = self._warm()
                try:
                    succeeded, answer = child.ask(limit, (function, arguments))
                except TooLate:
                    self._replace()
                    raise ImageError(
                        f"the object kept a decoding process over {limit:g} s (workers.decode_timeout_s)"
                    ) from None
                except (EOFError, OSError):
                    child.join(END_LIMIT_S)
                    killed += child.exitcode == -signal.SIGKILL
                    self._replace()
                    continue
                if succeeded:
                    result, cpu_seconds = answer
                    used(Stage.DECODE, cpu_seconds)
                    return result
                if isinstance(answer, MemoryError):
                    memory = self._workers.decoder_memory.human_readable()
                    raise ImageError(f"the object needs more memory than {memory} (workers.decoder_memory)")
                raise answer
        if killed == TRIES:
            raise DecoderKilled(
                f"the decoding process was killed {TRIES} times while it had this object; "
                "see the system's log for a lack of memory"
            )
        raise ImageError("the object took its decoding process down; check its pixel data with another program")

    def _warm(self) -> ChildProcess:
        """A process that lives and has loaded its modules: one that died before is no fault of the object."""
        for _ in range(STARTS):
            if self._ended:
                raise DecoderUnavailable("the decoding processes were stopped")
            if self._child is not None and self._child.pid is None:
                self._replace()
            child = self.start()
            if self._is_warm:
                return child
            try:
                child.ask(START_LIMIT_S)
                self._is_warm = True
                return child
            except (TooLate, EOFError, OSError):
                self._replace()
        raise DecoderUnavailable("no decoding process can be started; see the log and the machine's memory")

    def _replace(self) -> None:
        """Put away the process, which is begun anew when the next object comes."""
        bus.tell(bus.WorkerRestarted(bus.WorkerKind.DECODER))
        self._put_away()

    def _put_away(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def end(self, at: float) -> None:
        """End the process for good, by force if it is still at work at that time (of time.monotonic())."""
        self._ended = True
        if self._at_work.acquire(timeout=max(0.0, at - time.monotonic())):
            try:
                self._put_away()
            finally:
                self._at_work.release()
        elif (child := self._child) is not None:
            child.kill()  # whoever waits for its answer puts it away


def _work(pipe: Connection, memory: int) -> None:
    """The process: True once its modules are loaded, then (True, result and CPU seconds) or (False, error) for each object."""
    begin("mammod-decoder")
    _limit(memory)
    pipe.send(True)
    told = time.process_time()
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return  # the service has no more work, or is gone
        try:
            result = function(*arguments)
            spent = time.process_time()  # all of it: what one object leaves behind is collected during the next
            pipe.send((True, (result, spent - told)))
            told = spent
        except Exception as error:
            pipe.send((False, error))


def _cut_file(path: Path, cuts: Sequence[Cut], manifest: Manifest) -> list[Roi]:
    return cut_rois(open_image(path), cuts, manifest.crop, manifest.normalisation)


def _view_file(path: Path, frame: int) -> View:
    return view_of(open_image(path), frame)


def _read_file(
    source: Path, images: Mapping[str, Path], segmentations: Mapping[str, Path], lesions: settings.Lesions
) -> LesionReading:
    return read_lesions(
        dcmread(source),
        {uid: dcmread(path, stop_before_pixels=True) for uid, path in images.items()},
        {uid: dcmread(path) for uid, path in segmentations.items()},
        lesions,
    )


def keep_freed_memory() -> None:
    """Have this process use the memory of one image for the next (glibc only).

    As it comes, malloc gives every large array back to the system and asks anew for the next one: to be given the pages costs
    as much as reading a raw image, and at times, where the system has to find them first, ten times as much.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    with suppress(OSError, AttributeError):
        malloc = ctypes.CDLL(None)
        malloc.mallopt(mmap_max, 0)
        malloc.mallopt(trim_threshold, KEPT)


def _limit(memory: int) -> None:
    """This process gets so many bytes."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os.nice(BESIDE_RECEIVING)
    keep_freed_memory()
