"""The pool of decoder processes, which decode, cut and read lesion objects with limits of time and memory.

Neither a codec nor a malicious object can hold up the service or take it down. Each process works on one
object at a time, so the death of a process costs that object and no other.
"""

from __future__ import annotations

import ctypes
import os
import queue
import resource
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
from daemon.events.bus import WorkerKind
from daemon.events.timings import Stage, used
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import read_lesions
from daemon.reports.display_image import View, view_of
from daemon.system.child_process import AnswerTimeout, ChildError, ChildExited, initialise_child
from daemon.system.supervisor import SupervisedProcess
from model.bundle import Manifest
from model.errors import ImageError
from model.image import open_image
from model.roi import Roi
from model.roi_extraction import Cut, cut_rois

MAX_ATTEMPTS = 3  # at an object whose process dies
MAX_STARTS = 3  # of a process before the object has to wait
STOP_LIMIT_S = 30.0
NICENESS = 5  # a sender that waits for its answer comes before work that can wait
KEPT_MEMORY = 256 << 20  # bytes, enough for one large image after the other


class DecoderPool:
    """Decodes and reads in `count` processes; an object whose process dies is tried twice more. Thread-safe.

    Every method raises DecoderUnavailable if no process can be started, and DecoderKilled if each one was
    killed.
    """

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
        """Return how many processes there should be."""
        return len(self._decoders)

    @property
    def alive(self) -> int:
        """Return how many are alive; one that died is restarted when the next object comes."""
        return sum(decoder.pid is not None for decoder in self._decoders)

    @property
    def waiting(self) -> int:
        """Return the number of objects that wait for a free process."""
        return self._waiting

    def start(self) -> None:
        """Start the processes, so that they are ready when the first image comes; do not wait for them."""
        for decoder in self._decoders:
            decoder.start()

    def cut(self, path: Path, cuts: Sequence[Cut]) -> list[Roi]:
        """Return the ROIs of one image file, one per cut; each frame is decoded once.

        Raises:
            ImageError: the image cannot be decoded or cut, takes too long or too much memory, or crashed its
                process.
        """
        return self._run(_cut_file, path, cuts, self._manifest)

    def view(self, path: Path, frame: int) -> View:
        """Return one frame of an image file as a small picture.

        Raises:
            ImageError: see `cut`.
        """
        return self._run(_view_file, path, frame)

    def read(
        self, source: Path, images: Mapping[str, Path], segmentations: Mapping[str, Path], lesions: settings.Lesions
    ) -> LesionReading:
        """Return the lesions of a SEG or SR file; `images` and `segmentations` are by SOP Instance UID.

        Raises:
            LesionError: see `daemon.lesions.reader.read_lesions`.
            ImageError: it takes too long or too much memory, or crashed its process.
        """
        return self._run(_read_file, source, images, segmentations, lesions)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            self._waiting += 1
        decoder = self._free.get()
        with self._lock:
            self._waiting -= 1
        trouble = None
        try:
            return decoder.run(function, *arguments)
        except DecoderUnavailable as error:
            trouble = str(error)
            raise
        finally:
            self.trouble = trouble
            self._free.put(decoder)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let what is under way finish within `limit_s` seconds, then end the processes."""
        deadline = time.monotonic() + limit_s
        for decoder in self._decoders:
            decoder.stop(deadline)


class _Decoder:
    """One decoder process; it works on one object at a time."""

    def __init__(self, workers: settings.Workers) -> None:
        self._workers = workers
        self._process = SupervisedProcess("mammod-decoder", WorkerKind.DECODER, _serve, int(workers.decoder_memory))
        self._at_work = threading.Lock()
        self._is_stopped = False

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if there is no live process."""
        return self._process.pid

    def start(self) -> None:
        """Start the process if there is none; do not wait until it has loaded its modules."""
        self._process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns in the process, or raise what it raises there.

        Raises:
            ImageError: it takes too long or too much memory, or crashed its process `MAX_ATTEMPTS` times.
            DecoderKilled: somebody, or the system, killed each process by SIGKILL; the object may not be to
                blame.
            DecoderUnavailable: no process can be started, or the pool was stopped.
        """
        limit_s = self._workers.decode_timeout_s
        killed = 0
        with self._at_work:
            for _ in range(MAX_ATTEMPTS):
                self._wait_ready()
                try:
                    is_done, answer = self._process.ask(limit_s, (function, arguments))
                except AnswerTimeout:
                    self._process.replace()
                    raise ImageError(
                        f"the object kept a decoding process over {limit_s:g} s (workers.decode_timeout_s)"
                    ) from None
                except ChildExited as error:
                    killed += error.is_killed
                    self._process.replace()
                    continue
                if is_done:
                    result, cpu_seconds = answer
                    used(Stage.DECODE, cpu_seconds)
                    return result
                if isinstance(answer, MemoryError):
                    memory = self._workers.decoder_memory.human_readable()
                    raise ImageError(f"the object needs more memory than {memory} (workers.decoder_memory)")
                raise answer
        if killed == MAX_ATTEMPTS:
            raise DecoderKilled(
                f"the decoding process was killed {MAX_ATTEMPTS} times while it had this object; "
                "see the system's log for a lack of memory"
            )
        raise ImageError("the object took its decoding process down; check its pixel data with another program")

    def _wait_ready(self) -> None:
        """Have a live process that has loaded its modules; one that died idle costs the object no attempt."""
        for _ in range(MAX_STARTS):
            if self._is_stopped:
                raise DecoderUnavailable("the decoding processes were stopped")
            if self._process.is_dead:
                self._process.replace()
            try:
                self._process.ready()
                return
            except ChildError:
                self._process.replace()
        raise DecoderUnavailable("no decoding process can be started; see the log and the machine's memory")

    def stop(self, deadline: float) -> None:
        """End the process for good; kill it if it is still at work at `deadline` (of `time.monotonic`)."""
        self._is_stopped = True
        if self._at_work.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                self._process.close()
            finally:
                self._at_work.release()
        else:
            self._process.kill()  # the thread that waits for its answer releases what belonged to it


# --- in the process ---


def _serve(pipe: Connection, memory: int) -> None:
    """Send True when ready, then (True, (result, CPU seconds)) or (False, error) for each object."""
    initialise_child("mammod-decoder")
    _limit_resources(memory)
    pipe.send(True)
    reported = time.process_time()
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return  # the service has no more work, or is gone
        try:
            result = function(*arguments)
            spent = time.process_time()  # all of it: the garbage of one object is collected during the next
            pipe.send((True, (result, spent - reported)))
            reported = spent
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
        lesions.not_lesions,
        lesions.max_per_object,
    )


def keep_freed_memory() -> None:
    """Let this process use the memory of one image for the next one (glibc only).

    By default malloc returns every large array to the system and asks anew for the next one. Getting the
    pages costs as much as reading a raw image, and ten times as much when the system has to find them first.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    with suppress(OSError, AttributeError):
        malloc = ctypes.CDLL(None)
        malloc.mallopt(mmap_max, 0)
        malloc.mallopt(trim_threshold, KEPT_MEMORY)


def _limit_resources(memory: int) -> None:
    """Limit this process to `memory` bytes, and let receiving come first."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os.nice(NICENESS)
    keep_freed_memory()
