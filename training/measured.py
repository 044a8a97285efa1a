"""Compute the figures of one test set, with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from training import metrics
from training.findings import finding_figures
from training.roi_cache import Crops
from training.samples import NO_CALLBACK
from training.split import Part

# With fewer lesions, or a wider interval, no claim about accuracy can be made.
_FEW, _WIDE = 200, 0.1


@dataclass(frozen=True)
class Figure:
    """Hold a measured value with its 95 % bootstrap interval over patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} (too few for an interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Measured:
    """Hold one test set's figures.

    `reliability` holds (mean probability, share malignant, lesions) of each filled bin. `findings` is as
    returned by `training.findings.finding_figures`. `without_no_callback` is the AUC without the benign
    lesions whose patients were not recalled, None if there are none.
    """

    name: str
    lesions: int
    malignant: int
    patients: int
    auc: Figure
    accuracy: Figure
    accuracy_at_half: Figure
    sensitivity_at_90_specificity: Figure
    log_loss: float
    calibration_error: float
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    findings: dict[str, Any] | None = None
    without_no_callback: Figure | None = None


@dataclass(frozen=True)
class LesionSet:
    """Name the lesions of a test: a display name, the cache and which of its crops."""

    name: str
    crops: Crops
    part: Part


def measure(test: LesionSet, probability: np.ndarray, threshold: float) -> Measured:
    """Return all figures of one test set from its calibrated probabilities (N,)."""
    truth = test.crops.malignant[test.part.samples]
    patients = test.crops.patients[test.part.samples]

    def figure(metric: metrics.Metric, kept: np.ndarray | slice = slice(None)) -> Figure:
        both = bool(truth[kept].any() and not truth[kept].all())
        value = metric(probability[kept], truth[kept]) if both else math.nan
        return Figure(value, *metrics.interval(metric, probability[kept], truth[kept], patients[kept]))

    called_back = np.array(
        [test.crops.entries[number].descriptors.get("pathology") != NO_CALLBACK for number in test.part.samples]
    )
    return Measured(
        name=test.name,
        lesions=len(truth),
        malignant=int(truth.sum()),
        patients=len(np.unique(patients)),
        auc=figure(metrics.auc),
        accuracy=figure(lambda p, y: metrics.accuracy(p, y, threshold)),
        accuracy_at_half=figure(metrics.accuracy),
        sensitivity_at_90_specificity=figure(metrics.sensitivity_at),
        log_loss=metrics.log_loss(probability, truth),
        calibration_error=metrics.calibration_error(probability, truth),
        confusion=metrics.confusion(probability, truth, threshold),
        reliability=metrics.reliability(probability, truth),
        findings=finding_figures(test.crops, test.part, probability),
        without_no_callback=None if called_back.all() else figure(metrics.auc, called_back),
    )


def too_small(measured: Measured) -> str | None:
    """Return why a test set is too small for a claim, or None."""
    width = measured.auc.high - measured.auc.low
    if measured.lesions >= _FEW and width <= _WIDE:
        return None
    interval = "no interval of the AUC" if math.isnan(width) else f"an interval of the AUC {width:.2f} wide"
    return (
        f"{measured.name}: {measured.lesions} lesions of {measured.patients} patients, and {interval}: too few to tell "
        "networks apart that differ by a few points, or to claim an accuracy"
    )
