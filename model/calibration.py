"""Temperature scaling of probabilities (Guo et al. 2017), the one calibration a bundle may carry."""

from __future__ import annotations

import numpy as np

# A float32 sigmoid reaches 0 and 1 exactly, where the logit has no value.
_LEAST = 1e-7


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(logit(p) / temperature) for probabilities of any shape; 1.0 changes nothing within float32."""
    p = np.clip(np.asarray(probabilities, np.float64), _LEAST, 1 - _LEAST)
    return (1 / (1 + ((1 - p) / p) ** (1 / temperature))).astype(np.float32)
