"""Decoding and cutting in a pool of processes: codecs neither hold up the service nor take it down with them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pydicom import dcmread

from daemon.view import View, view_of
from model.bundle import Manifest
from model.cut import Cut, cut_rois
from model.errors import ImageError
from model.roi import Roi

DECODE_LIMIT_S = 300
STOP_LIMIT_S = 30.0


class DecoderPool:
    """Cuts ROIs from image files in `count` processes; a process that dies costs the images under way another try, each alone."""

    def __init__(self, count: int, manifest: Manifest) -> None:
        self._count = count
        self._manifest = manifest
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._executor = self._new_executor(count)

    @staticmethod
    def _new_executor(count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)

    def start(self) -> None:
        """Have the processes up and their modules loaded before the first image comes; does not wait for it."""
        for _ in range(self._count):
            self._executor.submit(os.getpid)

    def cut(self, path: Path, cuts: Sequence[Cut]) -> list[Roi]:
        """The ROIs of one image file, one per cut, each frame decoded once.

        Raises:
            ImageError: the image cannot be decoded or cut, or it alone took a decoding process down, twice.
        """
        return self._do(_cut_file, path, cuts, self._manifest)

    def view(self, path: Path, frame: int) -> View:
        """One frame of an image file as a small picture.

        Raises:
            ImageError: see `cut`.
        """
        return self._do(_view_file, path, frame)

    def _do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        executor = self._executor
        try:
            return self._do_in(executor, work, *arguments)
        except _ProcessDied:
            self._replace(executor)
        # Which of the images under way took the process down is not known: each is tried again with no other beside it.
        with self._alone:
            for _ in range(2):
                single = self._new_executor(1)
                try:
                    return self._do_in(single, work, *arguments)
                except _ProcessDied:
                    continue
                finally:
                    _end(single)
        raise ImageError("the image takes decoding processes down; check its pixel data with another program")

    def _do_in(self, executor: ProcessPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            future = executor.submit(work, *arguments)
        except RuntimeError as error:  # the pool broke, or another thread replaced it, since we took it
            raise _ProcessDied from error
        try:
            return future.result(DECODE_LIMIT_S)
        except (BrokenProcessPool, CancelledError) as error:
            raise _ProcessDied from error
        except TimeoutError as error:
            self._replace(executor)
            raise ImageError(
                "the image kept a decoding process over five minutes; check its pixel data with another program"
            ) from error

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._executor is broken:
                self._executor = self._new_executor(self._count)
                _end(broken)

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Let what is under way finish within `limit_s` seconds, then end the processes."""
        _end(self._executor, limit_s)


class _ProcessDied(Exception):
    """A decoding process ended before the image was cut, over this image or over one beside it."""


def _end(executor: ProcessPoolExecutor, limit_s: float = 0) -> None:
    processes = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    end = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()


def _cut_file(path: Path, cuts: Sequence[Cut], manifest: Manifest) -> list[Roi]:
    return cut_rois(dcmread(path), cuts, manifest.crop, manifest.normalisation)


def _view_file(path: Path, frame: int) -> View:
    return view_of(dcmread(path), frame)


def _end_with_parent() -> None:
    """A decoding process must not outlive a service that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
