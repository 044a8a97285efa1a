"""Marks too implausible for a lesion: larger than most of a breast, off the image, or without area."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.lesions.geometry import area, is_closed
from daemon.lesions.lesion import Region
from model.crop import image_spacing


def why_implausible(
    region: Region, outline: np.ndarray, image: Dataset, settings: Lesions, *, min_area_px: float = 0
) -> str | None:
    """Return why no lesion looks like this mark, None if it is plausible.

    `min_area_px` is for drawn shapes: a mask may mark a single pixel.

    `outline` is the drawn `region` as (N, 2) of (column, row), not clipped to the image.
    """
    rows, columns = int(image.Rows), int(image.Columns)
    clipped = np.clip(outline, 0.0, [columns, rows])
    drawn, inside = area(outline), area(clipped)
    if is_closed(region) and drawn < min_area_px:
        return (
            f"the closed {region.graphic_type} has an area of {drawn:.3g} pixels; at least {min_area_px:g} are "
            "expected (lesions.min_area_px)"
        )
    outside = 1 - inside / drawn if drawn else 0.0
    if is_closed(region) and outside > settings.max_outside_fraction:
        return (
            f"{100 * outside:.0f} % of the {region.graphic_type} lies outside the image (lesions.max_outside_fraction)"
        )
    if inside > settings.max_image_fraction * rows * columns:
        return (
            f"it covers {100 * inside / (rows * columns):.0f} % of the image, more than a lesion does "
            "(lesions.max_image_fraction)"
        )
    if (extent := _extent_mm(clipped, image)) > settings.max_extent_mm:
        return f"it is {extent:.0f} mm long, more than a lesion is (lesions.max_extent_mm)"
    return None


def _extent_mm(outline: np.ndarray, image: Dataset) -> float:
    """Return the longer side of the outline's box in millimetres; 0 if the image has no pixel spacing."""
    try:
        spacing = image_spacing(image)
    except Exception:  # a malformed spacing is reported when the lesion is cut
        return 0.0
    if spacing is None:
        return 0.0
    width, height = np.ptp(outline, axis=0)
    return max(float(width) * spacing[1], float(height) * spacing[0])
