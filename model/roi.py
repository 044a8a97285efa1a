"""`Roi` and `Box`: a network input cut from an image, and its position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROI_SIZE = 299  # pixels; the input of every network (paper, Data)


@dataclass(frozen=True)
class Box:
    """A rectangle in image pixels, SCOORD convention ((0, 0) is the top-left corner of the top-left pixel).

    It may extend beyond the image: that part of the ROI is padding.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Roi:
    """One network input, cut from `box` of an image.

    `pixels` is float32 (S, S) in 0..1; S is the crop policy's `size`, 299 by default. `mm_per_pixel` is the
    image's pixel spacing at the breast or film in millimetres, None if neither the image nor the policy gives
    it; `spacing_assumed` tells whether it is the policy's assumption. `padded` is the
    share of the box (0..1) that lies outside the image.
    """

    pixels: np.ndarray
    box: Box
    padded: float
    mm_per_pixel: float | None
    spacing_assumed: bool
