"""Reader of CBIS-DDSM as TCIA delivers it: a tree of DICOM folders and four case-description CSV files.

A row names three DICOM files: the mammogram, a crop (not used: the margin is wanted) and the mask. The CSV files give
crop and mask in either order, and the download renames files, so a row's files are looked for in its case folder and
told apart by what is in them: a mask has two values, a crop many. Some masks have another matrix than their mammogram;
where the aspect agrees they are scaled to it.
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
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from model.errors import ImageError
from model.image import read_frame
from training.csv_reader import read_rows
from training.errors import DataError
from training.samples import Reading, Sample, Skipped, rectangle

# The crops the paper used; it does not say how it left out the other 573 rows.
PAPER_COUNTS = {"train benign": 1187, "train malignant": 1138, "test benign": 409, "test malignant": 261}

_CASE = re.compile(r"(Calc|Mass)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
_FILES = re.compile(r"(calc|mass)_case_description_(train|test)_set\.csv")
_COLUMNS = (
    "patient_id",
    "abnormality_type",
    "pathology",
    "image_file_path",
    "roi_mask_file_path",
)
_LABELS = {"BENIGN": False, "BENIGN_WITHOUT_CALLBACK": False, "MALIGNANT": True}
_KINDS = {"mass": "mass", "calcification": "calcification"}
_ASPECT_TOLERANCE = 0.02
_Row = tuple[str, dict[str, str]]  # the CSV file's name, and one of its rows


def read_cbis(
    tree: Path, tables: Path, *, workers: int = 1, report: Callable[[int, int], None] | None = None
) -> Reading:
    """Read the CSV files in folder `tables` and the masks in `tree`, in `workers` processes; images are opened later.

    The case folders may lie anywhere below `tree`. `report` hears how many of how many rows are done.

    Raises:
        DataError: there is no case-description CSV, one lacks a column, or no case folder lies below `tree`.
    """
    files = sorted(path for path in tables.glob("*.csv") if _FILES.fullmatch(path.name))
    if not files:
        raise DataError(f"no file like mass_case_description_train_set.csv in {tables}")
    cases = _case_folders(tree)
    if not cases:
        raise DataError(
            f"no folder like Mass-Training_P_00001_LEFT_CC below {tree}; name the folder TCIA's download made"
        )
    rows = [(path.name, row) for path in files for row in read_rows(path, _COLUMNS)]
    found = []
    for result in _map(partial(_read_row, cases), rows, workers):
        found.append(result)
        if report:
            report(len(found), len(rows))
    return Reading(
        tuple(one for one in found if isinstance(one, Sample)), tuple(one for one in found if isinstance(one, Skipped))
    )


def set_beside_paper(samples: Sequence[Sample]) -> list[tuple[str, int, int]]:
    """(side and label, our count, the paper's count) for each of the four that the paper gives."""
    ours = dict.fromkeys(PAPER_COUNTS, 0)
    for sample in samples:
        ours[f"{sample.group} {'malignant' if sample.malignant else 'benign'}"] += 1
    return [(name, ours[name], count) for name, count in PAPER_COUNTS.items()]


def _case_folders(tree: Path) -> dict[str, Path]:
    """Case folders by name; nothing below one is searched."""
    found = {}
    for where, folders, _ in os.walk(tree):
        cases = [name for name in folders if _CASE.fullmatch(name)]
        found.update({name: Path(where) / name for name in cases})
        folders[:] = sorted(set(folders) - set(cases))
    return found


def _map(read: Callable[[_Row], Sample | Skipped], rows: list[_Row], workers: int) -> Iterator[Sample | Skipped]:
    if workers <= 1:
        yield from map(read, rows)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(read, rows, chunksize=16)


def _read_row(cases: dict[str, Path], table_row: _Row) -> Sample | Skipped:
    table, row = table_row
    name = _first_part(row["roi_mask_file_path"])
    try:
        return _sample(cases, table, row, name)
    except (ValueError, ImageError) as error:
        return Skipped(f"{table}: {name}", str(error))


def _sample(cases: dict[str, Path], table: str, row: dict[str, str], name: str) -> Sample:
    if row["pathology"] not in _LABELS:
        raise ValueError(f"unknown label {row['pathology']!r}")
    if row["abnormality_type"] not in _KINDS:
        raise ValueError(f"unknown abnormality type {row['abnormality_type']!r}")
    image = _image_file(cases, row["image_file_path"])
    mask = _mask(_files_below(cases, name))
    header = _read(image, pixels=False)
    return Sample(
        identity=name,
        dataset="cbis-ddsm",
        image=image,
        outline=_outline(mask, int(header.Rows), int(header.Columns)),
        malignant=_LABELS[row["pathology"]],
        patient=row["patient_id"],
        group="test" if "_test_" in table else "train",
        kind=_KINDS[row["abnormality_type"]],
    )


def _first_part(path: str) -> str:
    return path.replace("\\", "/").split("/")[0]


def _files_below(cases: dict[str, Path], name: str) -> list[Path]:
    if name not in cases:
        raise ValueError(f"the folder {name} is missing")
    files = sorted(cases[name].rglob("*.dcm"))
    if not files:
        raise ValueError(f"the folder {name} holds no DICOM file")
    return files


def _image_file(cases: dict[str, Path], path: str) -> Path:
    """The mammogram: the very file the row names, else the only one of its case folder."""
    name, _, rest = path.replace("\\", "/").partition("/")
    files = _files_below(cases, name)
    exact = cases[name] / rest
    if exact in files:
        return exact
    if len(files) > 1:
        raise ValueError(f"{len(files)} files in {name}, none of them the one the row names; one was expected")
    return files[0]


def _mask(files: list[Path]) -> np.ndarray:
    """The mask among a lesion's files, bool (rows, columns): the largest picture of exactly two values."""
    best = None
    for path in files:
        stored = read_frame(_read(path)).stored
        low, high = stored.min(), stored.max()
        binary = low < high and bool(np.all((stored == low) | (stored == high)))
        if binary and (best is None or stored.size > best.size):
            best = stored == high
    if best is None:
        raise ValueError(f"no mask: none of the {len(files)} files has exactly two values")
    return best


def _read(path: Path, *, pixels: bool = True) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (InvalidDicomError, OSError) as error:
        raise ValueError(f"{path.name} in {path.parent.name} cannot be read as DICOM: {error}") from error


def _outline(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The box around the mask's largest connected part, in pixels of an image of rows x columns."""
    down, across = rows / mask.shape[0], columns / mask.shape[1]
    if abs(down / across - 1) > _ASPECT_TOLERANCE:
        raise ValueError(f"the mask of {mask.shape[0]} x {mask.shape[1]} does not fit the image of {rows} x {columns}")
    labels, count = ndimage.label(mask)
    # An all-true mask and an empty one never come here: both have one value.
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:])) if count > 1 else 1
    height, width = ndimage.find_objects(labels)[largest - 1]
    return rectangle(width.start, height.start, width.stop, height.stop) * (across, down)
