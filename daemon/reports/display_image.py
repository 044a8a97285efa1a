"""`View`: one frame of a mammogram as a small grey picture, as a viewer would first show it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydicom import Dataset

from model.image import read_frame
from model.normalise import NormalisationPolicy, normalise

FIT = (900, 1050)  # width and height that a view fits into, pixels

# For people, whatever the bundle's own policy: the image's window, else the range of most of its pixels.
_FOR_DISPLAY = NormalisationPolicy(intensity="voi", without_voi="percentiles", for_processing=True)


@dataclass(frozen=True, eq=False)
class View:
    """One frame as a small picture.

    `grey` is uint8 (height, width), bright = dense; `scale` is the size of an image pixel in picture pixels.
    """

    grey: np.ndarray
    scale: float


def view_of(dataset: Dataset, frame: int = 1) -> View:
    """Return frame `frame` (from 1) of an image, reduced to fit `FIT`; it is never enlarged.

    Raises:
        ImageError: it cannot be decoded or normalised.
    """
    grey = np.rint(normalise(read_frame(dataset, frame), _FOR_DISPLAY) * 255).astype(np.uint8)
    rows, columns = grey.shape
    scale = min(1.0, FIT[0] / columns, FIT[1] / rows)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return View(np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX)), scale)
