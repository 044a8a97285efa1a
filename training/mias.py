"""Read the mini-MIAS images with a located abnormality (research use only; 1024 x 1024, 0.2 mm per pixel).

`lesions.csv` gives each abnormality's centre and radius in pixels, top-left origin. The two breasts of one
woman have consecutive numbers and share a `pair`, which is the patient here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.csv_reader import read_rows
from training.samples import Reading, Sample, Skipped

MM_PER_PIXEL = 0.2
_COLUMNS = ("image", "pair", "lesion_class", "severity", "x", "y", "radius")
_KINDS = {"CALC": "calcification", "CIRC": "mass", "SPIC": "mass", "MISC": "mass", "ARCH": "other", "ASYM": "other"}
_LABELS = {"BENIGN": False, "MALIGNANT": True}
_CORNERS = 64


def read_mias(folder: Path) -> Reading:
    """Read `folder`/lesions.csv.

    Ill-defined masses (MISC) count as masses, distortion and asymmetry as other.

    Raises:
        DataError: lesions.csv is missing or lacks a column.
    """
    samples, skipped = [], []
    seen: dict[str, int] = {}
    for line, row in enumerate(read_rows(folder / "lesions.csv", _COLUMNS), start=2):
        seen[row["image"]] = seen.get(row["image"], 0) + 1
        try:
            samples.append(_sample(folder, row, seen[row["image"]]))
        except ValueError as error:
            skipped.append(Skipped(f"lesions.csv row {line} ({row['image']})", str(error)))
    return Reading(tuple(samples), tuple(skipped))


def _sample(folder: Path, row: dict[str, str], number: int) -> Sample:
    image = folder / row["image"]
    if not image.is_file():
        raise ValueError("the image's file is missing")
    if row["lesion_class"] not in _KINDS:
        raise ValueError(f"unknown class {row['lesion_class']!r}")
    if row["severity"] not in _LABELS:
        raise ValueError(f"unknown label {row['severity']!r}")
    column, line, radius = (float(row[name]) for name in ("x", "y", "radius"))
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    return Sample(
        identity=f"{image.stem}#{number}",
        dataset="mini-mias",
        image=image,
        outline=np.stack([column + radius * np.cos(angle), line + radius * np.sin(angle)], axis=1),
        malignant=_LABELS[row["severity"]],
        patient=f"pair {row['pair']}",
        group=None,
        kind=_KINDS[row["lesion_class"]],
        spacing=(MM_PER_PIXEL, MM_PER_PIXEL),
    )
