"""Resample a segmentation of another pixel grid (scaled, cropped, padded) onto its image's grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.references import Collected, items, size

_SAME_DIRECTION = 1e-3  # cosine
_SAME_ASPECT = 0.01


@dataclass(frozen=True, eq=False)
class _Plane:
    """A frame in space (PS3.3 C.7.6.2): first pixel's centre and spacing in mm, column and row directions."""

    origin: np.ndarray
    along_columns: np.ndarray
    along_rows: np.ndarray
    row_spacing: float
    column_spacing: float


@dataclass(frozen=True)
class Grid:
    """The position of a segmentation's frame on its image.

    Pixel (row, column) of the image is pixel ((row - `first_row`) / `row_scale`, ...) of the segmentation,
    both counted from 0 at pixel centres.
    """

    rows: int
    columns: int
    first_row: float = 0.0
    first_column: float = 0.0
    row_scale: float = 1.0
    column_scale: float = 1.0


def grid_of(
    segmentation: Dataset, index: int, image: Dataset, frame: int, settings: Lesions, collected: Collected
) -> Grid | None:
    """Return the grid of a SEG's frame `index` (from 0) on an image's `frame` (from 1), None if equal.

    Uses position and spacing if both give them; else plain scale if the aspect ratios agree and
    `lesions.scale_segmentations` allows it, with a note in the report.

    Raises:
        LesionError: the sizes differ and neither applies.
    """
    own, expected = size(segmentation), size(image)
    if own == expected:
        return None
    rows, columns = expected
    ours, theirs = _plane(segmentation, index), _plane(image, frame - 1)
    if ours and theirs and _are_parallel(ours, theirs):
        offset = ours.origin - theirs.origin
        return Grid(
            rows,
            columns,
            first_row=float(offset @ theirs.along_rows) / theirs.row_spacing,
            first_column=float(offset @ theirs.along_columns) / theirs.column_spacing,
            row_scale=ours.row_spacing / theirs.row_spacing,
            column_scale=ours.column_spacing / theirs.column_spacing,
        )
    row_scale, column_scale = rows / own[0], columns / own[1]
    sizes = (
        f"the segmentation has {own[0]} rows x {own[1]} columns and its source image {rows} rows x {columns} columns"
    )
    if abs(row_scale / column_scale - 1) > _SAME_ASPECT or not settings.scale_segmentations:
        raise LesionError(
            f"{sizes}; expected the same pixel grid, or position and spacing of both, or the same aspect ratio and "
            "lesions.scale_segmentations"
        )
    collected.notes.append(
        f"A segmentation of {own[0]} rows x {own[1]} columns was scaled to its image of {rows} rows x {columns} columns."
    )
    return Grid(rows, columns, (row_scale - 1) / 2, (column_scale - 1) / 2, row_scale, column_scale)


def on_grid(pixels: np.ndarray, grid: Grid | None, fill: int) -> np.ndarray:
    """Return a segmentation's nearest stored values (rows, columns) on the image's grid.

    `fill` is the value of pixels that the segmentation does not cover.
    """
    if grid is None:
        return pixels
    row = np.rint((np.arange(grid.rows) - grid.first_row) / grid.row_scale).astype(int)
    column = np.rint((np.arange(grid.columns) - grid.first_column) / grid.column_scale).astype(int)
    covered = ((row >= 0) & (row < pixels.shape[0]))[:, None] & ((column >= 0) & (column < pixels.shape[1]))
    taken = pixels[np.clip(row, 0, pixels.shape[0] - 1)][:, np.clip(column, 0, pixels.shape[1] - 1)]
    return np.where(covered, taken, fill)


def _are_parallel(first: _Plane, second: _Plane) -> bool:
    return bool(
        np.allclose(first.along_columns, second.along_columns, atol=_SAME_DIRECTION)
        and np.allclose(first.along_rows, second.along_rows, atol=_SAME_DIRECTION)
    )


def _plane(dataset: Dataset, index: int) -> _Plane | None:
    position = _values(dataset, index, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _values(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _values(dataset, index, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None or not (spacing > 0).all():
        return None
    return _Plane(position, orientation[:3], orientation[3:], float(spacing[0]), float(spacing[1]))


def _values(dataset: Dataset, index: int, macro: str, keyword: str, count: int) -> np.ndarray | None:
    """Return an attribute of a frame: of its functional groups, the shared ones, or the data set itself."""
    own = items(dataset, "PerFrameFunctionalGroupsSequence")[index : index + 1]
    holders = [
        item for group in (*own, *items(dataset, "SharedFunctionalGroupsSequence")) for item in items(group, macro)
    ]
    for holder in (*holders, dataset):
        value = holder.get(keyword)
        if value is not None and len(value) == count:
            numbers = np.array([float(number) for number in value])
            return numbers if np.isfinite(numbers).all() else None
    return None
