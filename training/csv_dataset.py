"""Read a plain CSV of a hospital's own lesions: image, box or outline, label, patient; DICOM or PNG.

Columns: `image` (path, relative to the CSV), `label` (benign, malignant, 0 or 1), `patient`, and either `x`,
`y`, `width`, `height` (pixels, top-left origin) or `outline` ("column,row column,row ..."). Optional: `group`
(train or test), `kind` (mass, calcification, other), `mm_per_pixel` (if the image does not give it), `name`
(unique).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from training.csv_reader import read_rows
from training.errors import DataError
from training.samples import KINDS, Reading, Sample, Skipped, rectangle
from training.split import check_sides

_LABELS = {"benign": False, "0": False, "malignant": True, "1": True}
_BOX = ("x", "y", "width", "height")


def read_table(path: Path) -> Reading:
    """Read the CSV `path`; an unusable row is skipped with its reason.

    Raises:
        DataError: the file cannot be read, lacks a column, or puts one patient into both groups.
    """
    rows = read_rows(path, ("image", "label", "patient"))
    columns = rows[0] if rows else {}
    if rows and "outline" not in columns and not all(name in columns for name in _BOX):
        raise DataError(f"{path}: neither a column 'outline' nor the four of a box ({', '.join(_BOX)})")
    samples, skipped = [], []
    for line, row in enumerate(rows, start=2):
        try:
            samples.append(_sample(path, row, line))
        except ValueError as error:
            skipped.append(Skipped(f"{path.name} row {line}", str(error)))
    both = check_sides([sample.patient for sample in samples], [sample.group for sample in samples])
    if both:
        raise DataError(f"{path}: {len(both)} patients stand in both groups; put all lesions of a patient into one")
    return Reading(tuple(samples), tuple(skipped))


def _sample(path: Path, row: dict[str, str], line: int) -> Sample:
    image = path.parent / row["image"]
    if not row["image"] or not image.is_file():
        raise ValueError(f"there is no image {row['image']!r}")
    if row["label"].lower() not in _LABELS:
        raise ValueError(f"unknown label {row['label']!r}; benign, malignant, 0 or 1 was expected")
    if not row["patient"]:
        raise ValueError("no patient; without one the lesion cannot be kept on one side of a split")
    kind = row.get("kind", "").lower() or "other"
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {', '.join(KINDS)} was expected")
    group = row.get("group", "").lower() or None
    if group not in ("train", "test", None):
        raise ValueError(f"unknown group {group!r}; train or test was expected")
    spacing = _number(row["mm_per_pixel"], "mm_per_pixel") if row.get("mm_per_pixel") else None
    if spacing is not None and spacing <= 0:
        raise ValueError(f"mm_per_pixel is {spacing:g}; more than 0 was expected")
    return Sample(
        identity=row.get("name") or f"{path.stem}#{line}",
        dataset=path.stem,
        image=image,
        outline=_outline(row),
        malignant=_LABELS[row["label"].lower()],
        patient=row["patient"],
        group=group,
        kind=kind,
        spacing=None if spacing is None else (spacing, spacing),
    )


def _outline(row: dict[str, str]) -> np.ndarray:
    if row.get("outline"):
        points = [point.split(",") for point in row["outline"].split()]
        if len(points) < 3 or any(len(point) != 2 for point in points):
            raise ValueError(f"outline {row['outline'][:40]!r}; three or more 'column,row' were expected")
        return np.array([[_number(value, "outline") for value in point] for point in points])
    x, y, width, height = (_number(row.get(name, ""), name) for name in _BOX)
    if width <= 0 or height <= 0:
        raise ValueError(f"a box of {width:g} x {height:g} pixels cannot be")
    return rectangle(x, y, x + width, y + height)


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}; a number was expected")
    return value
