"""Reader of a folder of DDSM films squeezed to 299 x 299, with CBIS-DDSM's boxes in `rois.csv`.

Each 8-bit PNG in `films/` is a whole film resized to a square without regard to its aspect; `rois.csv` gives each
lesion's box in pixels of the full film and the film's own size. The aspect is undone by the pixels' spacing: a
picture's pixel is film_rows / 299 film pixels high and film_columns / 299 wide, so a box that is square in
millimetres is square on the film. What a film pixel measures is not recorded; 0.05 mm is assumed for all (DDSM's
scanners had 0.042 to 0.05 mm), as the crop policy assumes it in the service for a film scan without spacing.
"""

from __future__ import annotations

from pathlib import Path

from training.csv_reader import read_rows
from training.samples import Reading, Sample, Skipped, rectangle

FILM_MM = 0.05
_SIDE = 299
_COLUMNS = (
    "film",
    "patient",
    "type",
    "pathology",
    "official_split",
    "x",
    "y",
    "width",
    "height",
    "film_rows",
    "film_columns",
)
_KINDS = {"mass": "mass", "calc": "calcification"}
_LABELS = {"BENIGN": False, "MALIGNANT": True}


def read_ddsm299(folder: Path) -> Reading:
    """Read `folder`/rois.csv; the films are opened later.

    Raises:
        DataError: rois.csv is missing or lacks a column.
    """
    samples, skipped = [], []
    seen: dict[str, int] = {}
    for line, row in enumerate(read_rows(folder / "rois.csv", _COLUMNS), start=2):
        seen[row["film"]] = seen.get(row["film"], 0) + 1
        try:
            samples.append(_sample(folder, row, seen[row["film"]]))
        except ValueError as error:
            skipped.append(Skipped(f"rois.csv row {line} ({row['film']})", str(error)))
    return Reading(tuple(samples), tuple(skipped))


def _sample(folder: Path, row: dict[str, str], number: int) -> Sample:
    image = folder / "films" / row["film"]
    if not image.is_file():
        raise ValueError("the film's file is missing")
    if row["type"] not in _KINDS:
        raise ValueError(f"unknown type {row['type']!r}")
    if row["pathology"] not in _LABELS:
        raise ValueError(f"unknown label {row['pathology']!r}")
    x, y, width, height, rows, columns = (
        int(row[name]) for name in ("x", "y", "width", "height", "film_rows", "film_columns")
    )
    return Sample(
        identity=f"{image.stem}#{number}",
        dataset="ddsm299",
        image=image,
        outline=rectangle(x, y, x + width, y + height) * (_SIDE / columns, _SIDE / rows),
        malignant=_LABELS[row["pathology"]],
        patient=row["patient"],
        group=None,  # all of it is from the official training part, so its own split says nothing here
        kind=_KINDS[row["type"]],
        spacing=(FILM_MM * rows / _SIDE, FILM_MM * columns / _SIDE),
        spacing_assumed=True,
    )
