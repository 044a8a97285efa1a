"""A stand-in engine without a framework: its probability is the ROI's mean.

MAMMOD_TEST_BATCH_S makes it take so long over each batch; in MAMMOD_TEST_PIDS it leaves a file named by its
process that holds its niceness; MAMMOD_TEST_THRESHOLD is its threshold; with MAMMOD_TEST_VERIFY it verifies
the bundle as the real engine does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import load_bundle


class MeanEngine:
    name, why = "stand-in", "a test wants it"

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.threshold = float(os.environ.get("MAMMOD_TEST_THRESHOLD", "0.5"))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        time.sleep(float(os.environ.get("MAMMOD_TEST_BATCH_S", "0")))
        return rois.mean(axis=(1, 2)).clip(0, 1).astype(np.float32)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray:
        """The ROI itself in 10 x 10 cells, as the network has: bright is hot."""
        count, size, _ = rois.shape
        side = size // 10
        cells = rois[:, : side * 10, : side * 10].reshape(count, 10, side, 10, side)
        return cells.mean(axis=(2, 4)).astype(np.float32)


def open_engine(path: str, digest: str, *_: Any) -> MeanEngine:
    if os.environ.get("MAMMOD_TEST_VERIFY"):
        assert load_bundle(Path(path), allow_untrained=True).digest == digest
    if folder := os.environ.get("MAMMOD_TEST_PIDS"):
        (Path(folder) / str(os.getpid())).write_text(str(os.nice(0)))
    return MeanEngine(digest)
