"""Studies of real size: four views each, pixels that compress realistically, lesions marked by SEG or SR.

Templates are written once; before each sending, new UIDs of the same length replace the old ones in the file.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid

from tests.support.lesion_objects import MarkedRegion, mammogram, measurement_report_of, segmentation_of
from tests.support.peers.programs import program

FULL = (4084, 3328)  # rows, columns: 27.2 MB at 16 bits
TINY = (512, 416)
VIEWS = (("R", "CC"), ("R", "MLO"), ("L", "CC"), ("L", "MLO"))
SYNTAXES = ("raw", "JPEG lossless", "JPEG-LS", "JPEG 2000")
LESIONS = 2  # of each study, one on each view of the right breast
_PREFIX = "1.2.826.0.1.3680043.8.498.78."
_FIRST = 1_000_000


def breast(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return uint16 (rows, columns), 12 bits: tissue of several scales, detector noise, zero around it."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((rows, columns), np.float32)
    for cells in (8, 32, 128):
        coarse = random.normal(0, 600 / cells**0.5, (cells, cells)).astype(np.float32)
        pixels += np.kron(coarse, np.ones((-(-rows // cells), -(-columns // cells)), np.float32))[:rows, :columns]
    pixels += 2000 + random.normal(0, 8, (rows, columns))
    row, column = np.ogrid[:rows, :columns]
    inside = ((row - rows / 2) / (0.45 * rows)) ** 2 + (column / (0.6 * columns)) ** 2 < 1
    return np.where(inside, np.clip(pixels, 1, 4095), 0).astype(np.uint16)


class Study:
    """One study as files in `folder`; `renew` gives it new UIDs, `number` selects SEG or SR and the syntaxes.

    Of its views every second is raw; the others are compressed, in another way from study to study.
    """

    def __init__(self, folder: Path, number: int, shape: tuple[int, int]) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._token = _FIRST + number
        uid = iter(f"{_PREFIX}{self._token}.{part}" for part in range(10, 99))
        rows, columns = shape
        study = next(uid)
        images = [
            mammogram(
                rows, columns, sop_instance_uid=next(uid), study_instance_uid=study, series_instance_uid=next(uid),
                laterality=laterality, view=view, patient_id=f"P{self._token}", pixels=breast(rows, columns, 4 * number + place),
            )
            for place, (laterality, view) in enumerate(VIEWS)
        ]  # fmt: skip
        for place, image in enumerate(images):
            kind = SYNTAXES[1 + (number + place // 2) % 3] if place % 2 else "raw"
            path = folder / f"{place}-{kind.replace(' ', '-')}.dcm"
            image.save_as(path, enforce_file_format=True)
            _compress(path, kind)
        for place, image in enumerate(images[:LESIONS]):
            made = _segmentation(image) if number % 2 == 0 else _report(image)
            made.SOPInstanceUID, made.SeriesInstanceUID = next(uid), next(uid)
            made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
            made.save_as(folder / f"lesion-{place}.dcm", enforce_file_format=True)
        self._places = {path: _places(path, self._token) for path in sorted(folder.iterdir())}
        self.size = sum(path.stat().st_size for path in self._places)

    @property
    def lesion_objects(self) -> list[Path]:
        """Return the files of the lesion objects."""
        return sorted(self.folder.glob("lesion-*.dcm"))

    def renew(self, number: int) -> None:
        """Make it study `number` of those that are sent (from 1 to some millions)."""
        token = str(_FIRST + number).encode()
        for path, places in self._places.items():
            with path.open("r+b") as file:
                for place in places:
                    file.seek(place)
                    file.write(token)


def _places(path: Path, token: int) -> list[int]:
    return [match.start() for match in re.finditer(str(token).encode(), path.read_bytes())]


def _compress(path: Path, kind: str) -> None:
    if kind == "JPEG 2000":
        image = dcmread(path)
        image.compress(JPEG2000Lossless, generate_instance_uid=False)
        image.save_as(path, enforce_file_format=True)
    elif kind != "raw":
        name, *options = ("dcmcjpeg", "+e1", "+un") if kind == "JPEG lossless" else ("dcmcjpls", "+un")
        other = path.with_suffix(".new")
        subprocess.run([program(name), *options, str(path), str(other)], check=True, capture_output=True)
        other.rename(path)


def _corners(image: Dataset) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the lesion: some 15 mm of a full-size image."""
    rows, columns = image.Rows, image.Columns
    return rows // 2, rows // 2 + rows // 20, columns // 4, columns // 4 + columns // 16


def _segmentation(image: Dataset) -> Dataset:
    top, bottom, left, right = _corners(image)
    mask = np.zeros((image.Rows, image.Columns), np.uint8)
    mask[top:bottom, left:right] = 1
    return segmentation_of(image, mask)


def _report(image: Dataset) -> Dataset:
    top, bottom, left, right = _corners(image)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return measurement_report_of(image, [MarkedRegion("POLYLINE", corners, tracking_uid=generate_uid())])
