"""Fit and check the undecided band: split conformal prediction by class (Vovk 2012).

Each class has a limit of its own, beyond which at most 1 - `nominal` of its lesions lie; a probability that
neither limit excludes leaves both classes open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from training.split import patient_folds


@dataclass(frozen=True)
class Band:
    """Bound the undecided probabilities: below `low` a lesion is not malignant, above `high` not benign."""

    low: float
    high: float

    def undecided(self, probability: np.ndarray) -> np.ndarray:
        """Return which probabilities (N,) lie in the band."""
        return (probability >= self.low) & (probability <= self.high)

    def covers(self, probability: np.ndarray, malignant: np.ndarray) -> np.ndarray:
        """Return for which lesions (N,) the band does not exclude the truth.

        If the limits have crossed there is no band: between them the nearer limit decides.
        """
        if self.low > self.high:
            return malignant == (probability >= (self.low + self.high) / 2)
        return np.where(malignant, probability >= self.low, probability <= self.high)


def fit_band(probability: np.ndarray, malignant: np.ndarray, nominal: float = 0.9) -> Band:
    """Return the band of calibration lesions' probabilities (N,) at coverage `nominal` for each class.

    The limit is the k-th of n + 1, k = floor((1 - nominal) (n + 1)), so that a new lesion of that class is
    excluded with a probability of at most 1 - nominal. If a class has too few lesions, its limit excludes
    none of them.
    """
    return Band(_limit(probability[malignant], nominal), 1 - _limit(1 - probability[~malignant], nominal))


def measured_coverage(
    probability: np.ndarray, malignant: np.ndarray, patients: np.ndarray, *, nominal: float = 0.9, rounds: int = 50
) -> tuple[float, float]:
    """Return (coverage, share undecided) by `rounds` of two-fold cross-validation over patients."""
    covered, undecided = [], []
    for seed in range(rounds):
        fold = patient_folds(patients, malignant, 2, seed)
        for side in (0, 1):
            band = fit_band(probability[fold != side], malignant[fold != side], nominal)
            covered.append(band.covers(probability[fold == side], malignant[fold == side]))
            undecided.append(band.undecided(probability[fold == side]))
    return float(np.concatenate(covered).mean()), float(np.concatenate(undecided).mean())


def _limit(probability: np.ndarray, nominal: float) -> float:
    place = math.floor((1 - nominal) * (len(probability) + 1) + 1e-9)
    return float(np.sort(probability)[place - 1]) if place else 0.0
