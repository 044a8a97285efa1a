"""Recognition of ROIs unlike the training data, by plain statistics of their pixels.

A network's own features do not recognise foreign images (measured: AUROC 0.37 to 0.54); grey, contrast,
sharpness and grain do better. The distance is Mahalanobis', in these statistics.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from model.manifest import Familiar

_PERCENTILES = (1, 10, 25, 50, 75, 90, 99)


def pixel_statistics(roi: np.ndarray) -> np.ndarray:
    """Return the statistics float64 (K,) of a ROI (S, S) in 0..1.

    Percentiles of grey, the share of black, and the logarithms of contrast, edges and grain at three scales.
    """
    roi = np.asarray(roi, np.float64)
    fine = [np.std(roi - ndimage.gaussian_filter(roi, sigma, mode="reflect")) for sigma in (0.7, 1.5, 4.0)]
    edges = np.mean(np.hypot(*np.gradient(roi)))
    contrast = np.std(roi)
    return np.array(
        [*np.percentile(roi, _PERCENTILES), np.mean(roi < 0.02), *np.log(np.array([contrast, edges, *fine]) + 1e-3)]
    )


def familiar_from(statistics: np.ndarray, share: float = 0.95) -> Familiar:
    """Return the summary of training ROIs' statistics (N, K) whose limit keeps `share` of them."""
    mean = statistics.mean(axis=0)
    covariance = np.cov(statistics, rowvar=False)
    covariance += 1e-3 * np.diag(np.diag(covariance)) + 1e-9 * np.eye(len(mean))
    values, vectors = np.linalg.eigh(covariance)
    whitening = (vectors / np.sqrt(values)).T
    distances = np.linalg.norm((statistics - mean) @ whitening.T, axis=1)
    return Familiar(
        mean=tuple(mean.tolist()),
        whitening=tuple(tuple(row) for row in whitening.tolist()),
        limit=float(np.quantile(distances, share)),
    )


def distance(roi: np.ndarray, familiar: Familiar) -> float:
    """Return how far a ROI (S, S) in 0..1 lies from the training ROIs, in standard deviations."""
    offset = pixel_statistics(roi) - np.asarray(familiar.mean)
    return float(np.linalg.norm(np.asarray(familiar.whitening) @ offset))


def is_unlike_training(roi: np.ndarray, familiar: Familiar) -> bool:
    """Return whether a ROI (S, S) lies beyond the limit."""
    return distance(roi, familiar) > familiar.limit
