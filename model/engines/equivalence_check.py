"""The trial of an engine: fixed ROIs, on which it must agree with TensorFlow in float32."""

from __future__ import annotations

import numpy as np

COUNT = 48
LIMIT = 0.01  # of a probability


def trial_rois(size: int) -> np.ndarray:
    """Return `COUNT` fixed ROIs of float32 (size, size) in 0..1: breast-like shading with varied masses.

    Size, contrast and edge of the mass, and grey and texture of its surroundings vary. Many have low
    contrast, as real ROIs do: half precision harms those most.
    """
    row, column = np.mgrid[0:size, 0:size] / size - 0.5
    radius, angle = np.hypot(row, column), np.arctan2(row, column)
    rois = []
    for number in range(COUNT):
        share, contrast, texture = (
            number / (COUNT - 1),
            (0.02, 0.06, 0.15, 0.4)[number % 4],
            (0.005, 0.02, 0.06)[number % 3],
        )
        edge = 0.06 + 0.25 * ((number * 7) % COUNT) / COUNT + 0.02 * (number % 5) * np.cos((5 + number % 9) * angle)
        mass = 1 / (1 + np.exp(np.clip((radius - edge) / (0.01 + 0.015 * (number % 3)), -50, 50)))
        shading = 0.15 + 0.6 * share + 0.1 * np.cos(3 * row + number) * np.cos(2 * column - number)
        waves = sum(
            np.cos(2 * np.pi * ((3 + wave) * row + (number - wave) % 11 * column) + wave * number) / wave
            for wave in range(1, 6)
        )
        rois.append(np.clip(shading + texture * waves + contrast * mass, 0, 1))
    return np.stack(rois).astype(np.float32)


def difference(said: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference of two engines' probabilities; infinite if one is not a number."""
    largest = float(np.max(np.abs(said.astype(np.float64) - reference)))
    return largest if np.isfinite(largest) else float("inf")
