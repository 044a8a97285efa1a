"""Compute figures of a binary classifier from probabilities and labels, in plain numpy.

Intervals are percentile bootstrap over patients: the lesions of one woman (two views of one mass, often) are
not independent, so whole patients are resampled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import optimize
from scipy.stats import rankdata

from model.calibration import calibrate

Metric = Callable[[np.ndarray, np.ndarray], float]
_EPSILON = 1e-7
FEWEST_PATIENTS = 10  # for an interval


def auc(probability: np.ndarray, malignant: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN unless both classes are present.

    It is the share of pairs in which a malignant lesion scores above a benign one, ties counting half.
    """
    positive = int(np.count_nonzero(malignant))
    negative = len(malignant) - positive
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(probability)
    return float((ranks[malignant].sum() - positive * (positive + 1) / 2) / (positive * negative))


def accuracy(probability: np.ndarray, malignant: np.ndarray, threshold: float = 0.5) -> float:
    """Return the share of lesions on their side of the threshold.

    A probability equal to the threshold counts as malignant.
    """
    return float(np.mean((probability >= threshold) == malignant))


def sensitivity_at(probability: np.ndarray, malignant: np.ndarray, specificity: float = 0.9) -> float:
    """Return the highest sensitivity at a specificity of at least `specificity`.

    That is the share of benign lesions below the threshold.
    """
    false_positive, true_positive, _ = roc(probability, malignant)
    allowed = false_positive <= 1 - specificity + 1e-9
    return float(true_positive[allowed].max())


def confusion(probability: np.ndarray, malignant: np.ndarray, threshold: float = 0.5) -> list[list[int]]:
    """Return [[true negative, false positive], [false negative, true positive]].

    Rows are the truth, benign first.
    """
    called = probability >= threshold
    return [[int(np.sum((malignant == truth) & (called == said))) for said in (False, True)] for truth in (False, True)]


def log_loss(probability: np.ndarray, malignant: np.ndarray) -> float:
    """Return the mean binary cross-entropy in nats, probabilities kept 1e-7 off 0 and 1 as Keras does."""
    p = np.clip(np.asarray(probability, float), _EPSILON, 1 - _EPSILON)
    return float(-np.mean(np.where(malignant, np.log(p), np.log(1 - p))))


def roc(probability: np.ndarray, malignant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ROC curve as (false positive rate, true positive rate, threshold).

    It runs from (0, 0, inf) to (1, 1, lowest). One sort and two running sums: N log N for N lesions.
    """
    order = np.argsort(-probability, kind="stable")
    score, truth = probability[order], malignant[order].astype(bool)
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each run of equal scores
    thresholds = np.concatenate([[np.inf], score[last]])
    sides = [np.concatenate([[0], np.cumsum(side)[last]]) for side in (~truth, truth)]
    rates = [side / side[-1] if side[-1] else np.full(len(thresholds), np.nan) for side in sides]
    return rates[0], rates[1], thresholds


def interval(
    metric: Metric,
    probability: np.ndarray,
    malignant: np.ndarray,
    patients: np.ndarray,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of `metric`, patients drawn with replacement.

    Draws without both classes are left out. With fewer than ten patients it is NaN: redrawing two or three of
    them says nothing about others.
    """
    generator = np.random.default_rng(seed)
    names, owner = np.unique(patients, return_inverse=True)
    if len(names) < FEWEST_PATIENTS:
        return float("nan"), float("nan")
    lesions = [np.flatnonzero(owner == number) for number in range(len(names))]
    values = []
    for _ in range(draws):
        drawn = np.concatenate([lesions[number] for number in generator.integers(0, len(names), len(names))])
        truth = malignant[drawn]
        if truth.any() and not truth.all():
            values.append(metric(probability[drawn], truth))
    if not values:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def fit_temperature(probability: np.ndarray, malignant: np.ndarray) -> float:
    """Return the temperature (0.05 ... 20) with the lowest log loss; Guo et al. 2017.

    The order of scores is unchanged.
    """
    found = optimize.minimize_scalar(
        lambda log_t: log_loss(calibrate(probability, np.exp(log_t)), malignant),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def fit_temperature_and_bias(probability: np.ndarray, malignant: np.ndarray) -> tuple[float, float]:
    """Return the temperature (0.05 ... 20) and bias (-5 ... 5) with the lowest log loss (Platt 1999)."""
    found = optimize.minimize(
        lambda at: log_loss(calibrate(probability, np.exp(at[0]), at[1]).astype(float), malignant),
        x0=[np.log(fit_temperature(probability, malignant)), 0.0],
        bounds=[(np.log(0.05), np.log(20)), (-5, 5)],
        method="Nelder-Mead",
    )
    return float(np.exp(found.x[0])), float(found.x[1])


def best_threshold(probability: np.ndarray, malignant: np.ndarray) -> float:
    """Return the threshold of the highest Youden index (sensitivity + specificity - 1).

    It lies half-way to the next lower score.
    """
    false_positive, true_positive, thresholds = roc(probability, malignant)
    best = int(np.argmax(true_positive - false_positive))
    if best == 0:
        return 0.5
    lower = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float((thresholds[best] + lower) / 2)


def reliability(probability: np.ndarray, malignant: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return bins of equal width as (mean probability, share malignant, lesions); empty ones are left out."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        (float(probability[place == b].mean()), float(malignant[place == b].mean()), int(np.sum(place == b)))
        for b in range(bins)
        if (place == b).any()
    ]


def calibration_error(probability: np.ndarray, malignant: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error: the mean gap of the reliability bins, weighted by lesions."""
    return sum(abs(said - true) * n for said, true, n in reliability(probability, malignant, bins)) / len(probability)
