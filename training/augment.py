"""Augmentation of ROIs: random on the fly, or the paper's six fixed copies.

A transform moves the grey values of a (S, S) ROI about its centre by one bilinear resampling; what comes in from
outside the ROI is its mirror image. Every random draw comes from a generator the caller gives, so that an epoch can be
made again after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from training.split import COPIES


@dataclass(frozen=True)
class Augmentation:
    """What may change: flips, rotation up to +- `rotation` degrees, shift up to +- `shift` of the side, and the grey g,
    which becomes g * (1 +- `contrast`) +- `brightness`, kept in 0..1.
    """

    flips: bool = True
    rotation: float = 180.0
    shift: float = 0.05
    contrast: float = 0.15
    brightness: float = 0.05


def augment(roi: np.ndarray, generator: np.random.Generator, how: Augmentation) -> np.ndarray:
    """A random variant of `roi` (S, S) float32, of the same size and type."""
    angle = generator.uniform(-how.rotation, how.rotation)
    shift = generator.uniform(-how.shift, how.shift, 2) * roi.shape[0]
    mirror = how.flips and generator.random() < 0.5
    upside_down = how.flips and generator.random() < 0.5
    gain = 1 + generator.uniform(-how.contrast, how.contrast)
    offset = generator.uniform(-how.brightness, how.brightness)
    moved = _flip(_move(roi, angle, shift), mirror, upside_down)
    return np.clip(moved * np.float32(gain) + np.float32(offset), 0, 1)


def paper_copy(roi: np.ndarray, copy: int, generator: np.random.Generator) -> np.ndarray:
    """Copy 0 ... 5 of the paper's six: as it is, flipped up-down, flipped left-right, shifted, rotated by two angles.

    The paper gives no amounts: the shift is up to a tenth of the side, the angles lie in 5 to 85 degrees to either
    side.
    """
    if not 0 <= copy < COPIES:
        raise ValueError(f"copy {copy} of {COPIES}")
    if copy == 0:
        return roi
    if copy in (1, 2):
        return _flip(roi, copy == 2, copy == 1)
    if copy == 3:
        return _move(roi, 0.0, generator.uniform(-0.1, 0.1, 2) * roi.shape[0])
    return _move(roi, generator.uniform(5, 85) * (1 if copy == 4 else -1), np.zeros(2))


def _move(roi: np.ndarray, angle: float, shift: np.ndarray) -> np.ndarray:
    radians = np.deg2rad(angle)
    matrix = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    centre = (np.array(roi.shape) - 1) / 2
    return ndimage.affine_transform(roi, matrix, centre - matrix @ (centre + shift), order=1, mode="reflect")


def _flip(roi: np.ndarray, mirror: bool, upside_down: bool) -> np.ndarray:
    if mirror:
        roi = roi[:, ::-1]
    return np.ascontiguousarray(roi[::-1] if upside_down else roi)
