"""Calibration of probabilities: temperature (Guo et al. 2017), bias, and conversion to another prevalence."""

from __future__ import annotations

import math

import numpy as np

# A float32 sigmoid reaches 0 and 1 exactly, for which the logit is undefined.
_LEAST = 1e-7


def calibrate(probabilities: np.ndarray, temperature: float, bias: float = 0.0) -> np.ndarray:
    """Return sigmoid(logit(p) / temperature + bias) for probabilities of any shape.

    Temperature 1 and bias 0 change nothing within float32.
    """
    p = np.clip(np.asarray(probabilities, np.float64), _LEAST, 1 - _LEAST)
    return (1 / (1 + ((1 - p) / p) ** (1 / temperature) * math.exp(-bias))).astype(np.float32)


def at_prevalence(probability: float, calibrated_at: float, prevalence: float) -> float:
    """Return a probability calibrated at one share of malignant lesions, converted to another share.

    Bayes' rule on the odds: the likelihood ratio of the image stays, the prior odds change.
    """
    p = min(max(probability, _LEAST), 1 - _LEAST)
    odds = p / (1 - p) * prevalence / (1 - prevalence) * (1 - calibrated_at) / calibrated_at
    return odds / (1 + odds)
