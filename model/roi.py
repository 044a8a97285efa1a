"""`Roi` and `Box`: what was cut out of an image for the network, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROI_SIZE = 299  # pixels; the input of every network (paper, Data)


@dataclass(frozen=True)
class Box:
    """A rectangle in image pixels, SCOORD convention ((0, 0) is the top-left corner of the top-left pixel).

    It may reach past the image: that part of the ROI is padding.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Roi:
    """One network input: `pixels` is float32 (S, S) in 0..1, cut from `box` of the image; S is the crop policy's `size`, 299
    unless it says otherwise.

    `mm_per_pixel` is the image's pixel spacing at the breast or film in millimetres, None where neither the image nor
    the policy knows it; `spacing_assumed` says that it comes from the policy's assumption and not from the image.
    `padded` is the share of the box (0..1) that lies outside the image.
    """

    pixels: np.ndarray
    box: Box
    padded: float
    mm_per_pixel: float | None
    spacing_assumed: bool
