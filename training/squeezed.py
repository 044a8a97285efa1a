"""Read a folder of films squeezed to a square, with CBIS-DDSM's boxes in `rois.csv`.

Each 8-bit grey picture is a whole film resized to a square of any size without regard to its aspect;
`rois.csv` gives each lesion's box in pixels of the full film and the film's own size. The pixels' spacing
undoes the aspect: a picture's pixel is film_rows / side film pixels high and film_columns / side wide, so a
box that is square in millimetres is square on the film. The size of a film pixel is not recorded; 0.05 mm is
assumed for all (DDSM's scanners had 0.042 to 0.05 mm), as the crop policy assumes it in the service for a
film scan without spacing.

The pictures lie in `films/`, or in `train/` and `test/`, which is then the data set's own split. Without such
folders the column `official_split` is ignored, as all films may be of one side.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.case_tables import FilmTable, read_film_tables
from training.csv_reader import read_rows
from training.samples import Reading, Sample, Skipped, rectangle

FILM_MM = 0.05
_COLUMNS = (
    "film",
    "patient",
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


def read_squeezed(folder: Path, tables: Path | None = None) -> Reading:
    """Read `folder`/rois.csv; of the films only the size is read now.

    `tables` may hold CBIS-DDSM's case-description CSV files; their descriptors are kept with each lesion that
    they identify uniquely. A `rois.csv` without the column `type` holds masses only.

    Raises:
        DataError: rois.csv is missing or lacks a column.
    """
    samples, skipped = [], []
    described = read_film_tables(tables or folder)
    seen: Counter[str] = Counter()
    for line, row in enumerate(read_rows(folder / "rois.csv", _COLUMNS), start=2):
        seen[row["film"]] += 1
        try:
            samples.append(_sample(folder, row, seen[row["film"]], described))
        except ValueError as error:
            skipped.append(Skipped(f"rois.csv row {line} ({row['film']})", str(error)))
    return Reading(tuple(samples), tuple(skipped))


def _sample(folder: Path, row: dict[str, str], number: int, described: FilmTable) -> Sample:
    split = row["official_split"]
    by_split = (folder / split).is_dir()
    image = folder / (split if by_split else "films") / row["film"]
    if not image.is_file():
        raise ValueError("the film's file is missing")
    kind = row.get("type", "mass")
    if kind not in _KINDS:
        raise ValueError(f"unknown type {kind!r}")
    if row["pathology"] not in _LABELS:
        raise ValueError(f"unknown label {row['pathology']!r}")
    x, y, width, height, rows, columns = (
        int(row[name]) for name in ("x", "y", "width", "height", "film_rows", "film_columns")
    )
    down, across = _size(image)
    side, view = row.get("laterality", ""), row.get("view", "")
    about = {"pathology": row["pathology"], "side": side, "view": view}
    about |= described.descriptors(row["patient"], side, view, _KINDS[kind], row["pathology"])
    return Sample(
        identity=f"{image.stem}#{number}",
        dataset=folder.resolve().name,
        image=image,
        outline=rectangle(x, y, x + width, y + height) * (across / columns, down / rows),
        malignant=_LABELS[row["pathology"]],
        patient=row["patient"],
        group=split if by_split else None,
        kind=_KINDS[kind],
        spacing=(FILM_MM * rows / down, FILM_MM * columns / across),
        spacing_assumed=True,
        descriptors={name: value for name, value in about.items() if value},
    )


def _size(image: Path) -> tuple[int, int]:
    try:
        with Image.open(image) as picture:
            return picture.height, picture.width
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("the film's file is no picture that can be read") from error
