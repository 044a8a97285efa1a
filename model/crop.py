"""ROI geometry: the box around a lesion's outline, and its resampling to the network's input, on arrays.

Coordinates are DICOM SCOORD: (column, row), (0, 0) the top-left corner of the first pixel. The ROI's centre
is the centre of the outline's bounding box, wherever that lies: the part outside the image is padding, the
box never shifts.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydicom import Dataset
from scipy.sparse import csr_array

from model.errors import ImageError
from model.roi import ROI_SIZE, Box, Roi

GREY_LEVELS = 65_535  # of a ROI, see `cut_roi`

Spacing = tuple[float, float]  # millimetres between rows, between columns


class CropPolicy(BaseModel):
    """How a ROI is cut; part of a bundle's manifest.

    `kind` sets the side of the square box around the outline's centre:

    - "pixels": `side_px` image pixels whatever they measure (the paper);
    - "millimetres": `side_mm`;
    - "lesion": `factor` times the longer side of the outline's box, at least `minimum_mm` or `minimum_px`.

    `assumed_spacing_mm` is used if the image has no spacing; without it, such an image is refused if
    millimetres are needed. `resolution_mm` first reduces the image to that many millimetres per pixel, so
    that a fine digital mammogram shows no more than the coarse films of the training set did; coarser images
    stay as they are. `padding` is the grey (0..1) of the part outside the image: 0 is the black of air.
    `size` is the ROI's side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["pixels", "millimetres", "lesion"] = "pixels"
    side_px: int | None = Field(default=None, ge=1, le=20_000)
    side_mm: float | None = Field(default=None, gt=0, le=500)
    factor: float | None = Field(default=None, ge=1, le=20)
    minimum_px: float | None = Field(default=None, ge=1, le=20_000)
    minimum_mm: float | None = Field(default=None, gt=0, le=500)
    assumed_spacing_mm: float | None = Field(default=None, gt=0, le=5)
    resolution_mm: float | None = Field(default=None, gt=0, le=5)
    padding: float = Field(default=0.0, ge=0, le=1)
    size: int = Field(default=ROI_SIZE, ge=32, le=2048)

    @model_validator(mode="before")
    @classmethod
    def _paper_by_default(cls, values: dict[str, object]) -> dict[str, object]:
        if values.get("kind", "pixels") == "pixels":
            return {"side_px": ROI_SIZE, **values}
        return values

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        sizes = ("side_px", "side_mm", "factor", "minimum_px", "minimum_mm")
        given = {name for name in sizes if getattr(self, name) is not None}
        allowed: dict[str, list[set[str]]] = {
            "pixels": [{"side_px"}],
            "millimetres": [{"side_mm"}],
            "lesion": [{"factor", "minimum_px"}, {"factor", "minimum_mm"}],
        }
        if given not in allowed[self.kind]:
            wanted = " or ".join(" and ".join(sorted(names)) for names in allowed[self.kind])
            raise ValueError(f"kind {self.kind!r} takes {wanted}; given were {', '.join(sorted(given)) or 'none'}")
        return self

    @property
    def needs_spacing(self) -> bool:
        """Whether cutting a ROI needs millimetres."""
        return self.side_mm is not None or self.minimum_mm is not None or self.resolution_mm is not None


def image_spacing(header: Dataset) -> Spacing | None:
    """Return the pixel spacing at the breast or film in mm (rows, columns), None if the image has none.

    PixelSpacing if it was calibrated: it differs from ImagerPixelSpacing or states its calibration (PS3.3
    10.7.1.3); else ImagerPixelSpacing, at the detector, divided by EstimatedRadiographicMagnificationFactor
    (C.8.11.7); else PixelSpacing; else NominalScannedPixelSpacing of a film scan (C.8.6.2).
    """
    calibrated, imager = _pair(header, "PixelSpacing"), _pair(header, "ImagerPixelSpacing")
    if calibrated and imager and calibrated == imager and not header.get("PixelSpacingCalibrationType"):
        calibrated = None
    if calibrated:
        return calibrated
    if imager:
        magnification = _magnification(header)
        return imager[0] / magnification, imager[1] / magnification
    return _pair(header, "NominalScannedPixelSpacing")


def lesion_box(outline: np.ndarray, policy: CropPolicy, spacing: Spacing | None = None) -> Box:
    """Return the box to cut for an outline (N, 2) of (column, row), square in mm (in pixels for "pixels").

    Raises:
        ImageError: no points, a coordinate that is not a number, or no spacing although the policy needs it.
    """
    points = np.asarray(outline, float)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ImageError(f"an outline of shape {points.shape} cannot be cut; N x 2 finite (column, row) were expected")
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    column, row = (left + right) / 2, (top + bottom) / 2
    if policy.side_px is not None:
        # On whole pixels, so that the paper's ROI is the image's own pixels and nothing is interpolated.
        left, top = math.floor(column - policy.side_px / 2 + 0.5), math.floor(row - policy.side_px / 2 + 0.5)
        return Box(left, top, left + policy.side_px, top + policy.side_px)
    height, width = _sides(right - left, bottom - top, policy, spacing)
    return Box(column - width / 2, row - height / 2, column + width / 2, row + height / 2)


class Image(Protocol):
    """An image to cut from: an array (rows, columns), or `model.normalise.Grey`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        ...

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray: ...


def cut_roi(image: Image, outline: np.ndarray, spacing: Spacing | None, policy: CropPolicy) -> Roi:
    """Cut one ROI from a normalised image: float (rows, columns) in 0..1 -> `Roi` of float32 (size, size).

    `outline` is (N, 2) of (column, row); `spacing` is the image's own, see `image_spacing`. Reducing averages
    over the area that each ROI pixel covers; enlarging is bilinear. Grey is rounded to 16 bits, so that a
    training set may keep its ROIs in 16 bits and still train on exactly what the service sees.

    Raises:
        ImageError: an outline that is invalid or outside the image; no spacing although the policy needs it.
    """
    assumed = spacing is None and policy.assumed_spacing_mm is not None
    if assumed:
        spacing = (policy.assumed_spacing_mm, policy.assumed_spacing_mm)  # type: ignore[assignment]
    if spacing is None and policy.needs_spacing:
        raise ImageError("the image has no pixel spacing, the bundle's crop policy needs one and assumes none")
    box = lesion_box(outline, policy, spacing)
    rows, columns = image.shape
    _check_on_image(outline, rows, columns)
    inside = _overlap(box.left, box.right, columns) * _overlap(box.top, box.bottom, rows)
    area = (box.right - box.left) * (box.bottom - box.top)
    return Roi(
        pixels=_resample(image, box, policy, spacing),
        box=box,
        padded=float(np.clip(1 - inside / area, 0, 1)),
        mm_per_pixel=None if spacing is None else math.sqrt(spacing[0] * spacing[1]),
        spacing_assumed=assumed,
    )


def _sides(width: float, height: float, policy: CropPolicy, spacing: Spacing | None) -> tuple[float, float]:
    """Return (rows, columns) of the box in image pixels, for the kinds that are square in millimetres."""
    row_mm, column_mm = spacing or (1.0, 1.0)
    if policy.side_mm is not None:
        side = policy.side_mm
    else:
        # A minimum in pixels counts those of the finer direction.
        least = policy.minimum_mm if policy.minimum_px is None else policy.minimum_px * min(row_mm, column_mm)
        side = max(least or 0.0, (policy.factor or 1.0) * max(width * column_mm, height * row_mm))
    return side / row_mm, side / column_mm


def _check_on_image(outline: np.ndarray, rows: int, columns: int) -> None:
    (left, top), (right, bottom) = np.min(outline, axis=0), np.max(outline, axis=0)
    if right < 0 or bottom < 0 or left > columns or top > rows:
        raise ImageError(
            f"the outline (columns {left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}) lies outside "
            f"the image of {columns} columns and {rows} rows"
        )


def _overlap(start: float, stop: float, length: int) -> float:
    return max(0.0, min(stop, length) - max(start, 0.0))


def _resample(image: Image, box: Box, policy: CropPolicy, spacing: Spacing | None) -> np.ndarray:
    """Resample separably: rows @ image @ columns, with padding wherever the weights miss the image."""
    row_mm, column_mm = spacing or (None, None)
    top, down = _axis(box.top, box.bottom, image.shape[0], row_mm, policy)
    left, across = _axis(box.left, box.right, image.shape[1], column_mm, policy)
    part = image[top : top + down.shape[1], left : left + across.shape[1]].astype(np.float64)
    # Sparse: most weights are 0, and the sums have one order on every machine (report UIDs depend on it).
    pixels = (csr_array(across) @ (csr_array(down) @ part).T).T
    pixels += policy.padding * (1 - np.outer(down.sum(axis=1), across.sum(axis=1)))
    return (np.rint(np.clip(pixels, 0, 1) * GREY_LEVELS) / GREY_LEVELS).astype(np.float32)


def _axis(start: float, stop: float, length: int, spacing: float | None, policy: CropPolicy) -> tuple[int, np.ndarray]:
    """Return the first image pixel used along one axis, and the weights (size, n) from it on."""
    coarse = policy.size
    if policy.resolution_mm is not None and spacing is not None and spacing < policy.resolution_mm:
        coarse = max(1, round((stop - start) * spacing / policy.resolution_mm))
    if coarse >= policy.size:
        return _weights(start, (stop - start) / policy.size, policy.size, length)
    # Reduce to the coarse pixels, one beyond the box on either side, and enlarge those to the ROI.
    step = (stop - start) / coarse
    first, reduce = _weights(start - step, step, coarse + 2, length)
    begin, enlarge = _weights(1.0, coarse / policy.size, policy.size, coarse + 2)
    return first, enlarge @ reduce[begin : begin + enlarge.shape[1]]


def _weights(start: float, step: float, count: int, length: int) -> tuple[int, np.ndarray]:
    """Return how much of each pixel of an axis is in each of `count` cells of `step` pixels from `start`.

    Returns the first pixel and float64 (count, n). A cell's weights sum to 1 inside the axis, to less
    outside.
    """
    first, last = (int(np.clip(end, 0, length)) for end in (math.floor(start) - 1, math.ceil(start + step * count) + 1))
    pixel = np.arange(first, last)
    cell = start + step * np.arange(count)[:, None]
    if step >= 1:
        weights = np.clip(np.minimum(cell + step, pixel + 1) - np.maximum(cell, pixel), 0, None) / step
    else:
        weights = np.clip(1 - np.abs(cell + step / 2 - (pixel + 0.5)), 0, None)
    return first, weights


def _pair(header: Dataset, keyword: str) -> Spacing | None:
    try:
        rows, columns = (float(part) for part in header[keyword].value)
    except (KeyError, TypeError, ValueError):
        return None
    usable = 0 < rows < math.inf and 0 < columns < math.inf
    return (rows, columns) if usable else None


def _magnification(header: Dataset) -> float:
    try:
        factor = float(header.EstimatedRadiographicMagnificationFactor)
    except (AttributeError, TypeError, ValueError):
        return 1.0
    return factor if 0 < factor < math.inf else 1.0
