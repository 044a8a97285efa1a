"""Read CBIS-DDSM: TCIA's DICOM tree or the common JPEG edition, and the four case-description CSV files.

A row names three DICOM files: the mammogram, a crop (not used, as the margin is needed) and the mask. The CSV
files give crop and mask in either order, and the download renames files. So a row's files are looked for in
its case folder and told apart by their pixels: a mask has two values, a crop many. Some masks have another
matrix than their mammogram; if the aspect agrees they are scaled to it.

The JPEG edition has the same pictures as 8-bit JPEG in `jpeg/SERIES-UID/`, the UID being the third part of
the rows' paths. JPEG blurs a mask's two values, so nearly black and nearly white pixels count as one of them.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from model.errors import ImageError
from model.image import read_frame
from training.case_tables import FILES, KINDS, LABELS, descriptors_of
from training.csv_reader import read_rows
from training.errors import DataError
from training.known_outlines import KnownOutlines
from training.samples import Reading, Sample, Skipped, rectangle

# The crops the paper used; it does not say how it chose the 573 rows it left out.
PAPER_COUNTS = {"train benign": 1187, "train malignant": 1138, "test benign": 409, "test malignant": 261}

_CASE = re.compile(r"(Calc|Mass)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
_COLUMNS = (
    "patient_id",
    "abnormality_type",
    "pathology",
    "image_file_path",
    "roi_mask_file_path",
)
_ASPECT_TOLERANCE = 0.02
# Of 255: how far JPEG moves a mask's black and white; the share of edge pixels that it moves farther.
_JPEG_ERROR, _JPEG_EDGE = 40, 0.02
_PICTURES = (".jpg", ".jpeg")
_Row = tuple[str, dict[str, str]]  # the CSV file's name, and one of its rows


def read_cbis(
    tree: Path,
    tables: Path,
    *,
    workers: int = 1,
    report: Callable[[int, int], None] | None = None,
    outlines: Path | None = None,
) -> Reading:
    """Read the CSV files in folder `tables` and the masks in `tree`, in `workers` processes.

    Images are opened later. The case folders, or the series folders of the JPEG edition, may lie anywhere
    below `tree`. The file `outlines` keeps the outlines found in the masks, so that an interrupted reading
    resumes and a second one decodes no mask again. `report` is called with the number of rows done and the
    number of all rows.

    Raises:
        DataError: there is no case-description CSV, one lacks a column, or no case folder lies below `tree`.
    """
    files = sorted(path for path in tables.glob("*.csv") if FILES.fullmatch(path.name))
    if not files:
        raise DataError(f"no file like mass_case_description_train_set.csv in {tables}")
    rows = [(path.name, row) for path in files for row in read_rows(path, _COLUMNS)]
    cases = _case_folders(tree) or _series_folders(tree, rows)
    if not cases:
        raise DataError(
            f"no folder like Mass-Training_P_00001_LEFT_CC below {tree}, nor a series folder that a row names; "
            "name the folder that TCIA's download or the JPEG edition made"
        )
    known = KnownOutlines(outlines)
    found = []
    for result in _map(partial(_read_row, cases, known.of_lesion), rows, workers):
        found.append(result)
        if isinstance(result, Sample):
            known.keep(result.identity, _stamp(cases, result.identity, rows[len(found) - 1][1]), result.outline)
        if report:
            report(len(found), len(rows))
    return Reading(
        tuple(one for one in found if isinstance(one, Sample)), tuple(one for one in found if isinstance(one, Skipped))
    )


def set_beside_paper(samples: Sequence[Sample]) -> list[tuple[str, int, int]]:
    """Return (side and label, our count, the paper's count) for each of the paper's four counts."""
    ours = dict.fromkeys(PAPER_COUNTS, 0)
    for sample in samples:
        ours[f"{sample.group} {'malignant' if sample.malignant else 'benign'}"] += 1
    return [(name, ours[name], count) for name, count in PAPER_COUNTS.items()]


def _case_folders(tree: Path) -> dict[str, list[Path]]:
    """Return case folders by name; folders inside a case folder are not searched."""
    return {name: [path] for name, path in _folders(tree, lambda name: bool(_CASE.fullmatch(name))).items()}


def _series_folders(tree: Path, rows: Sequence[_Row]) -> dict[str, list[Path]]:
    """Return the JPEG edition's series folders by the case names in the rows.

    A lesion's crop and mask lie in one series or in two, in either order.
    """
    series: dict[str, set[str]] = {}
    for _, row in rows:
        for column in ("image_file_path", "cropped_image_file_path", "roi_mask_file_path"):
            parts = row.get(column, "").replace("\\", "/").split("/")
            if len(parts) >= 3:
                series.setdefault(parts[0], set()).add(parts[2])
    folders = _folders(tree, set().union(*series.values()).__contains__)
    found = {case: [folders[uid] for uid in sorted(uids) if uid in folders] for case, uids in series.items()}
    return {case: paths for case, paths in found.items() if paths}


def _folders(tree: Path, is_wanted: Callable[[str], bool]) -> dict[str, Path]:
    found = {}
    for where, folders, _ in os.walk(tree):
        wanted = [name for name in folders if is_wanted(name)]
        found.update({name: Path(where) / name for name in wanted})
        folders[:] = sorted(set(folders) - set(wanted))
    return found


def _map(read: Callable[[_Row], Sample | Skipped], rows: list[_Row], workers: int) -> Iterator[Sample | Skipped]:
    if workers <= 1:
        yield from map(read, rows)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(read, rows, chunksize=16)


def _read_row(
    cases: dict[str, list[Path]], known: dict[str, tuple[str, np.ndarray]], table_row: _Row
) -> Sample | Skipped:
    table, row = table_row
    name = _first_part(row["roi_mask_file_path"])
    try:
        return _sample(cases, known, table, row, name)
    except (ValueError, ImageError) as error:
        return Skipped(f"{table}: {name}", str(error))


def _sample(
    cases: dict[str, list[Path]], known: dict[str, tuple[str, np.ndarray]], table: str, row: dict[str, str], name: str
) -> Sample:
    if row["pathology"] not in LABELS:
        raise ValueError(f"unknown label {row['pathology']!r}")
    if row["abnormality_type"] not in KINDS:
        raise ValueError(f"unknown abnormality type {row['abnormality_type']!r}")
    image = _image_file(cases, row["image_file_path"])
    files = _files_below(cases, name)
    stamp, outline = known.get(name, ("", np.empty((0, 2))))
    if stamp != _stamp(cases, name, row):
        outline = _outline(_mask(files), *_shape(image))
    return Sample(
        identity=name,
        dataset="cbis-ddsm",
        image=image,
        outline=outline,
        malignant=LABELS[row["pathology"]],
        patient=row["patient_id"],
        group="test" if "_test_" in table else "train",
        kind=KINDS[row["abnormality_type"]],
        descriptors=descriptors_of(row),
    )


def _stamp(cases: dict[str, list[Path]], name: str, row: dict[str, str]) -> str:
    """Return a stamp of the state of the files that an outline was found in."""
    files = [_image_file(cases, row["image_file_path"]), *_files_below(cases, name)]
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def _shape(image: Path) -> tuple[int, int]:
    """Return a film's (rows, columns) without reading its pixels."""
    if image.suffix.lower() in _PICTURES:
        with Image.open(image) as picture:
            return picture.height, picture.width
    header = _read(image, pixels=False)
    return int(header.Rows), int(header.Columns)


def _first_part(path: str) -> str:
    return path.replace("\\", "/").split("/")[0]


def _files_below(cases: dict[str, list[Path]], name: str) -> list[Path]:
    if name not in cases:
        raise ValueError(f"the folder {name} is missing")
    files = sorted(
        path for folder in cases[name] for path in folder.rglob("*") if path.suffix.lower() in (".dcm", *_PICTURES)
    )
    if not files:
        raise ValueError(f"the folder {name} holds no DICOM file and no JPEG")
    return files


def _image_file(cases: dict[str, list[Path]], path: str) -> Path:
    """Return the mammogram: the very file the row names, else the only one of its case folder."""
    name, _, rest = path.replace("\\", "/").partition("/")
    files = _files_below(cases, name)
    exact = [folder / rest for folder in cases[name] if folder / rest in files]
    if exact:
        return exact[0]
    if len(files) > 1:
        raise ValueError(f"{len(files)} files in {name}, none of them the one the row names; one was expected")
    return files[0]


def _mask(files: list[Path]) -> np.ndarray:
    """Return a lesion's mask, bool (rows, columns): the largest picture of exactly two values in `files`."""
    best = None
    for path in files:
        found = _mask_in_jpeg(path) if path.suffix.lower() in _PICTURES else _mask_in_dicom(path)
        if found is not None and (best is None or found.size > best.size):
            best = found
    if best is None:
        raise ValueError(f"no mask: none of the {len(files)} files has exactly two values")
    return best


def _mask_in_dicom(path: Path) -> np.ndarray | None:
    stored = read_frame(_read(path)).stored
    low, high = stored.min(), stored.max()
    binary = low < high and bool(np.all((stored == low) | (stored == high)))
    return stored == high if binary else None


def _mask_in_jpeg(path: Path) -> np.ndarray | None:
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path.name} in {path.parent.name} cannot be read as JPEG: {error}") from error
    between = np.mean((grey > _JPEG_ERROR) & (grey < 255 - _JPEG_ERROR))
    white = grey >= 128
    return white if between <= _JPEG_EDGE and white.any() and not white.all() else None


def _read(path: Path, *, pixels: bool = True) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (InvalidDicomError, OSError) as error:
        raise ValueError(f"{path.name} in {path.parent.name} cannot be read as DICOM: {error}") from error


def _outline(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the box around the mask's largest connected part, in pixels of an image of rows x columns."""
    down, across = rows / mask.shape[0], columns / mask.shape[1]
    if abs(down / across - 1) > _ASPECT_TOLERANCE:
        raise ValueError(f"the mask of {mask.shape[0]} x {mask.shape[1]} does not fit the image of {rows} x {columns}")
    labels, count = ndimage.label(mask)
    # An all-true mask and an empty one are rejected before: both have one value.
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:])) if count > 1 else 1
    height, width = ndimage.find_objects(labels)[largest - 1]
    return rectangle(width.start, height.start, width.stop, height.stop) * (across, down)
