"""Decoding and cutting in a pool of processes: codecs neither hold up the service nor take it down with them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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


class DecoderPool:
    """Cuts ROIs from image files in `count` processes; a process that dies costs the image it worked on another try."""

    def __init__(self, count: int, manifest: Manifest) -> None:
        self._count = count
        self._manifest = manifest
        self._lock = threading.Lock()
        self._executor = self._new_executor()

    def _new_executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )

    def start(self) -> None:
        """Have the processes up and their modules loaded before the first image comes; does not wait for it."""
        for _ in range(self._count):
            self._executor.submit(os.getpid)

    def cut(self, path: Path, cuts: Sequence[Cut]) -> list[Roi]:
        """The ROIs of one image file, one per cut, each frame decoded once.

        Raises:
            ImageError: the image cannot be decoded or cut, or it took a decoding process down twice.
        """
        return self._do(_cut_file, path, cuts, self._manifest)

    def view(self, path: Path, frame: int) -> View:
        """One frame of an image file as a small picture.

        Raises:
            ImageError: see `cut`.
        """
        return self._do(_view_file, path, frame)

    def _do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        for _ in range(2):
            executor = self._executor
            try:
                return executor.submit(work, *arguments).result(DECODE_LIMIT_S)
            except BrokenProcessPool:
                self._replace(executor)
            except TimeoutError:
                self._replace(executor)
                break
        raise ImageError(
            "the image took a decoding process down or kept it over five minutes; check its pixel data with another program"
        )

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._executor is broken:
                self._executor = self._new_executor()
                processes = list((broken._processes or {}).values())
                broken.shutdown(wait=False, cancel_futures=True)
                for process in processes:
                    process.kill()

    def stop(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


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
