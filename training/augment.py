"""Augment ROIs: randomly on the fly, or by the paper's six fixed copies.

A transform moves the grey values of a (S, S) ROI about its centre by one bilinear resampling; outside the ROI
its mirror image is used. Every random draw comes from a generator that the caller passes, so an epoch can be
repeated after a restart.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from training.split import COPIES


@dataclass(frozen=True)
class Augmentation:
    """Set the ranges of random changes to a ROI, applied in this order.

    Geometry: flips, rotation up to +- `rotation` degrees, shift up to +- `shift` of the side, a field of view
    of `zoom` times to 1 / `zoom` times the side. Sharpness: with probability `blur_share` a Gaussian of up to
    `blur` pixels, with `resolution_share` a reduction to as little as 1 / `coarseness` of the pixels. Grey:
    with `gamma_share` an exponent of 1 / `gamma` to `gamma`, then g * (1 +- `contrast`) +- `brightness`.
    Grain: with `grain_share` Gaussian noise of a standard deviation of up to `grain`. JPEG: with `jpeg_share`
    a quality of 30 to 95. All values are kept in 0..1.
    """

    flips: bool = True
    rotation: float = 180.0
    shift: float = 0.05
    zoom: float = 1.0
    contrast: float = 0.15
    brightness: float = 0.05
    blur: float = 0.0
    blur_share: float = 0.0
    coarseness: float = 1.0
    resolution_share: float = 0.0
    gamma: float = 1.0
    gamma_share: float = 0.0
    grain: float = 0.0
    grain_share: float = 0.0
    jpeg_share: float = 0.0


# For networks whose answer must not depend on the scanner: all changes by a film or its digitisation.
STABLE = Augmentation(
    shift=0.08,
    zoom=1.25,
    contrast=0.3,
    brightness=0.1,
    blur=2.0,
    blur_share=0.4,
    coarseness=2.5,
    resolution_share=0.2,
    gamma=1.8,
    gamma_share=0.6,
    grain=0.05,
    grain_share=0.6,
    jpeg_share=0.15,
)


def augment(
    roi: np.ndarray, generator: np.random.Generator, how: Augmentation, *, size: int | None = None, margin: float = 1.0
) -> np.ndarray:
    """Return a random variant (size, size) float32 in 0..1 of `roi` (W, W).

    `roi` shows `margin` times the ROI's side. Without `size` the variant has W pixels.
    """
    size = size or len(roi)
    angle = generator.uniform(-how.rotation, how.rotation)
    shift = generator.uniform(-how.shift, how.shift, 2) * len(roi) / margin
    mirror = how.flips and generator.random() < 0.5
    upside_down = how.flips and generator.random() < 0.5
    gain = 1 + generator.uniform(-how.contrast, how.contrast)
    offset = generator.uniform(-how.brightness, how.brightness)
    zoom = how.zoom ** generator.uniform(-1, 1)
    step = len(roi) / margin / size * zoom
    moved = _flip(_move(roi, angle, shift, size=size, step=step), mirror, upside_down)
    degraded = _coarsen(_blur(moved, generator, how), generator, how)
    if generator.random() < how.gamma_share:
        degraded = np.clip(degraded, 0, 1) ** np.float32(how.gamma ** generator.uniform(-1, 1))
    grey = degraded * np.float32(gain) + np.float32(offset)
    if generator.random() < how.grain_share:
        grey = grey + generator.standard_normal(grey.shape, np.float32) * np.float32(generator.uniform(0, how.grain))
    grey = np.clip(grey, 0, 1)
    return jpeg(grey, int(generator.integers(30, 96))) if generator.random() < how.jpeg_share else grey


def coarsen(roi: np.ndarray, pixels: int) -> np.ndarray:
    """Reduce `roi` (S, S) to `pixels` by averaging and enlarge it bilinearly, as a coarser scanner would."""
    picture = Image.fromarray(np.ascontiguousarray(roi, np.float32))
    small = picture.resize((pixels, pixels), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR), np.float32)


def jpeg(roi: np.ndarray, quality: int) -> np.ndarray:
    """Return `roi` (S, S) in 0..1 after 8-bit baseline JPEG compression at `quality`."""
    held = io.BytesIO()
    Image.fromarray(np.rint(roi * 255).astype(np.uint8)).save(held, "JPEG", quality=quality)
    return np.asarray(Image.open(held), np.float32) / 255


def _blur(roi: np.ndarray, generator: np.random.Generator, how: Augmentation) -> np.ndarray:
    if generator.random() >= how.blur_share:
        return roi
    return np.asarray(ndimage.gaussian_filter(roi, generator.uniform(0, how.blur), mode="reflect"), np.float32)


def _coarsen(roi: np.ndarray, generator: np.random.Generator, how: Augmentation) -> np.ndarray:
    if generator.random() >= how.resolution_share:
        return roi
    return coarsen(roi, round(len(roi) / generator.uniform(1, how.coarseness)))


def paper_copy(roi: np.ndarray, copy: int, generator: np.random.Generator) -> np.ndarray:
    """Return copy 0 ... 5 of the paper's six: unchanged, two flips, a shift, two rotations.

    The flips are up-down, then left-right. The paper gives no amounts: the shift is up to a tenth of the
    side, the angles lie in 5 to 85 degrees to either side.
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


def _move(
    roi: np.ndarray, angle: float, shift: np.ndarray, *, size: int | None = None, step: float = 1.0
) -> np.ndarray:
    """Sample (size, size) cells of `step` pixels about the centre of `roi`, turned and shifted."""
    size = size or len(roi)
    if step > 1:  # averages over the cell, about
        roi = ndimage.gaussian_filter(roi, 0.4 * np.sqrt(step**2 - 1), mode="reflect", truncate=3)
    radians = np.deg2rad(angle)
    matrix = step * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    offset = (len(roi) - 1) / 2 - matrix @ ((size - 1) / 2 + np.asarray(shift) / step)
    return ndimage.affine_transform(roi, matrix, offset, output_shape=(size, size), order=1, mode="reflect")


def _flip(roi: np.ndarray, mirror: bool, upside_down: bool) -> np.ndarray:
    if mirror:
        roi = roi[:, ::-1]
    return np.ascontiguousarray(roi[::-1] if upside_down else roi)
