"""Batches of few sizes for any number of ROIs."""

from __future__ import annotations

import numpy as np


def bucket(count: int, largest: int) -> int:
    """Return the batch size to pad `count` ROIs to: the next power of two, at most `largest`."""
    return min(1 << (count - 1).bit_length(), largest)


def checked(rois: np.ndarray, size: int) -> np.ndarray:
    """Return ROIs (N, size, size) as float32.

    Raises:
        ValueError: ROIs of another shape.
    """
    rois = np.asarray(rois, np.float32)
    if rois.ndim != 3 or rois.shape[1:] != (size, size):
        raise ValueError(f"ROIs of shape {rois.shape}; (N, {size}, {size}) was expected")
    return rois
