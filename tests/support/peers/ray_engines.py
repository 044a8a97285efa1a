"""Engines for actors of a Ray cluster, called by import path there; a ROI's first pixel says what to do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

SLOW, DIE, FAIL = 0.81, 0.82, 0.83
SLOW_S = 5.0


class NodeEngine:
    """The probability is the ROI's last pixel; its name is the node it runs on. `folder` is the bundle's
    there.
    """

    threshold = 0.5

    def __init__(self, folder: str, digest: str) -> None:
        import ray

        self.digest = digest
        self.name = ray.get_runtime_context().get_node_id()
        assert Path(folder).is_dir()

    def predict(self, rois: np.ndarray) -> np.ndarray:
        told = {round(float(roi[0, 0]), 2) for roi in rois}
        if DIE in told:
            os.kill(os.getpid(), signal.SIGKILL)
        if SLOW in told:
            time.sleep(SLOW_S)
        if FAIL in told:
            raise ValueError("this batch is not to my taste")
        return rois[:, -1, -1].astype(np.float32)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        return np.broadcast_to(rois[:, -1:, -1:], (len(rois), 2, 2)).astype(np.float32)


def on_node(path: str, digest: str, _engine: str, _max_batch: int) -> NodeEngine:
    return NodeEngine(path, digest)
