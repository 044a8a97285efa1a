"""Measure how turns, grain, blur and gamma change a network's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from model.calibration import calibrate
from model.orientation import ORIENTATIONS, mean_logit, turn
from training import metrics
from training.recipe import ORIENTATIONS as SETS

Ask = Callable[[np.ndarray], np.ndarray]  # ROIs (N, S, S) -> probabilities (N,) before calibration, not turned


def changes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return functions that change ROIs (N, S, S), by name; the grain is the same in every call."""

    def grain(share: float) -> Callable[[np.ndarray], np.ndarray]:
        def add(rois: np.ndarray) -> np.ndarray:
            noise = np.random.default_rng(0).standard_normal(rois.shape, np.float32)
            return np.clip(rois + np.float32(share) * noise, 0, 1)

        return add

    return {
        "grain of 2 %": grain(0.02),
        "grain of 4 %": grain(0.04),
        "blur of 2 pixels": lambda rois: ndimage.gaussian_filter(rois, (0, 2, 2), mode="reflect"),
        "gamma 0.6": lambda rois: rois ** np.float32(0.6),
        "gamma 1.6": lambda rois: rois ** np.float32(1.6),
    }


def in_all_orientations(ask: Ask, rois: np.ndarray, orientations: int) -> np.ndarray:
    """Return the averaged probabilities (8, N) of ROIs turned eight ways, from eight passes.

    A turned ROI averaged over a set of orientations needs the plain answers of other orientations only.
    """
    single = np.stack([ask(turn(rois, orientation)) for orientation in range(ORIENTATIONS)])
    averaged = []
    for first in range(ORIENTATIONS):
        ways = [_both(first, second) for second in SETS[orientations]]
        averaged.append(mean_logit(single[ways]))
    return np.stack(averaged)


def flip_rate(probability: np.ndarray, threshold: float) -> float:
    """Return the share of lesions whose class changes with the orientation, from probabilities (8, N)."""
    called = probability >= threshold
    return float(np.mean(called.any(axis=0) & ~called.all(axis=0)))


def robustness(
    ask: Ask,
    rois: np.ndarray,
    malignant: np.ndarray,
    *,
    orientations: int = 1,
    temperature: float = 1.0,
    bias: float = 0.0,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Measure how many lesions change class when turned, and the AUC after each change."""
    turned = calibrate(in_all_orientations(ask, rois, orientations), temperature, bias)
    ways = SETS[orientations]
    after = {
        name: metrics.auc(mean_logit(np.stack([ask(turn(change(rois), way)) for way in ways])), malignant)
        for name, change in changes().items()
    }
    return {
        "lesions": len(rois),
        "flips": flip_rate(turned, threshold),
        "auc": metrics.auc(turned[0], malignant),
        "auc_after": after,
    }


def _both(first: int, second: int) -> int:
    """Return the orientation that turning by `first` and then by `second` gives."""
    probe = np.arange(9).reshape(3, 3)
    wanted = turn(turn(probe, first), second)
    return next(way for way in range(ORIENTATIONS) if np.array_equal(turn(probe, way), wanted))
