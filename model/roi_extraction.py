"""From a DICOM image to ROIs: decode, normalise, cut. Training and daemon share this one path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from model.crop import CropPolicy, cut_roi, image_spacing
from model.image import read_frame
from model.normalise import NormalisationPolicy, grey
from model.roi import Roi


@dataclass(frozen=True, eq=False)
class Cut:
    """A ROI to cut: frame (from 1) and outline (N, 2) of (column, row), SCOORD convention."""

    frame: int
    outline: np.ndarray


def cut_rois(dataset: Dataset, cuts: Sequence[Cut], crop: CropPolicy, normalisation: NormalisationPolicy) -> list[Roi]:
    """Return an image's ROIs in the order of `cuts`; decode each frame once, and hold one at a time.

    Raises:
        ImageError: the image cannot be read or normalised, or one of the outlines cannot be cut.
    """
    rois: dict[int, Roi] = {}
    for number in dict.fromkeys(cut.frame for cut in cuts):
        frame = read_frame(dataset, number)
        image, spacing = grey(frame, normalisation), image_spacing(frame.header)
        for place, cut in enumerate(cuts):
            if cut.frame == number:
                rois[place] = cut_roi(image, cut.outline, spacing, crop)
    return [rois[place] for place in range(len(cuts))]
