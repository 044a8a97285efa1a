"""Engines for the classifier's tests, called in its process; a ROI's first pixel says what to do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from config.errors import ConfigurationError

FAIL, DIE, HANG, NOT_A_NUMBER, DIE_ONCE, NO_HEAT_MAP, BE_KILLED = 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97


class FakeEngine:
    """The probability is the ROI's last pixel. `folder` is the bundle's, where batches are noted."""

    name, why = "fake", "a test wants it"
    threshold = 0.5

    def __init__(self, folder: str, digest: str) -> None:
        self._folder, self.digest = Path(folder), digest

    def predict(self, rois: np.ndarray) -> np.ndarray:
        with (self._folder / "batches").open("a") as file:
            file.write(f"{len(rois)}\n")
        told = {round(float(roi[0, 0]), 2) for roi in rois}
        if DIE in told or (DIE_ONCE in told and self._first_time()):
            os.abort()
        if BE_KILLED in told:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in told:
            time.sleep(1000)
        if FAIL in told:
            raise ValueError("this batch is not to my taste")
        return np.where(np.isclose(rois[:, 0, 0], NOT_A_NUMBER), np.nan, rois[:, -1, -1]).astype(np.float32)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        """A map of 2 x 2, each cell the ROI's last pixel; none of the batch where its first ROI says so."""
        with (self._folder / "heat-maps").open("a") as file:
            file.write(f"{len(rois)}\n")
        if np.isclose(rois[0, 0, 0], NO_HEAT_MAP):
            return None
        return np.broadcast_to(rois[:, -1:, -1:], (len(rois), 2, 2)).astype(np.float32)

    def _first_time(self) -> bool:
        try:
            (self._folder / "died").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def fake(path: str, digest: str, *_: Any) -> FakeEngine:
    return FakeEngine(path, digest)


def refuses(*arguments: Any) -> FakeEngine:
    raise RuntimeError("no such thing as this bundle")


def not_as_set(*arguments: Any) -> FakeEngine:
    raise ConfigurationError("the engine differs by 0.4")


def dies_at_start(*arguments: Any) -> FakeEngine:
    os._exit(7)


def never_ready(*arguments: Any) -> FakeEngine:
    time.sleep(1000)
    raise AssertionError


def starts_once(path: str, digest: str, *_: Any) -> FakeEngine:
    (Path(path) / "started").touch(exist_ok=False)
    return FakeEngine(path, digest)
