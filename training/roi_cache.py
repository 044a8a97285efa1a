"""The crops cache: every sample's ROI, cut once, as 16-bit grey in one file, with an index beside it.

A cache is a folder of `crops.npy` (N, S, S) uint16, 65535 being 1.0, and `index.json`. It is written under another name
and renamed when whole, so a folder without its last file or with a cut one is a broken cache and never a small one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import DataError

FULL_SCALE = 65535
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What the index says of one crop. `box` is (left, top, right, bottom) in image pixels, `padded` the share
    outside.
    """

    identity: str
    dataset: str
    malignant: bool
    patient: str
    group: str | None
    kind: str
    box: tuple[float, float, float, float]
    padded: float
    mm_per_pixel: float | None
    spacing_assumed: bool


@dataclass(frozen=True, eq=False)
class Crops:
    """An opened cache. `pixels` is the file mapped read-only; `digest` (sha256 of pixels and index) names the whole."""

    folder: Path
    pixels: np.ndarray
    entries: tuple[Entry, ...]
    policy: dict[str, Any]
    skipped: tuple[dict[str, str], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.entries)

    def roi(self, number: int) -> np.ndarray:
        """Crop `number` as float32 (S, S) in 0..1."""
        return self.pixels[number].astype(np.float32) / FULL_SCALE

    @property
    def malignant(self) -> np.ndarray:
        """The labels, bool (N,)."""
        return np.array([entry.malignant for entry in self.entries], bool)

    @property
    def patients(self) -> np.ndarray:
        """The patients, str (N,)."""
        return np.array([entry.patient for entry in self.entries])

    @property
    def groups(self) -> list[str | None]:
        """The data set's own split of each crop."""
        return [entry.group for entry in self.entries]


def write_cache(
    folder: Path,
    crops: Iterator[tuple[Entry, np.ndarray]],
    size: int,
    at_most: int,
    policy: dict[str, Any],
    skipped: list[dict[str, str]],
) -> Crops:
    """Write at most `at_most` ROIs of float (size, size) in 0..1 and open the result. `skipped` may grow meanwhile.

    Raises:
        DataError: `folder` exists already, or no crop came.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already; remove it to prepare the crops again, or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
    partial.mkdir(parents=True)
    pixels = np.lib.format.open_memmap(partial / "crops.npy", "w+", np.uint16, (at_most, size, size))
    entries: list[Entry] = []
    for entry, roi in crops:
        pixels[len(entries)] = np.rint(np.clip(roi, 0, 1) * FULL_SCALE)
        entries.append(entry)
    if not entries:
        shutil.rmtree(partial)
        raise DataError(f"no sample gave a crop; {len(skipped)} were skipped" + "".join(map(_reason, skipped[:3])))
    pixels.flush()
    if len(entries) < at_most:  # the file is as long as its header says
        np.save(partial / "shorter.npy", pixels[: len(entries)])
        (partial / "shorter.npy").replace(partial / "crops.npy")
    index = {
        "format": _FORMAT,
        "sha256": _sha256(partial / "crops.npy"),
        "policy": policy,
        "entries": [vars(entry) for entry in entries],
        "skipped": skipped,
    }
    (partial / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    partial.rename(folder)
    return open_cache(folder)


def open_cache(folder: Path) -> Crops:
    """Open a cache that `write_cache` finished.

    Raises:
        DataError: there is no whole cache in `folder`, or its pixels are not those of its index.
    """
    try:
        text = (folder / "index.json").read_bytes()
        index = json.loads(text)
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']}, this program reads {_FORMAT}")
        if _sha256(folder / "crops.npy") != index["sha256"]:
            raise ValueError("crops.npy is not the file that index.json describes")
        pixels = np.load(folder / "crops.npy", mmap_mode="r")
        entries = tuple(Entry(**{**entry, "box": tuple(entry["box"])}) for entry in index["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} is no whole crops cache ({error}); remove it and run `mammod-train prepare`"
        ) from error
    digest = hashlib.sha256(text).hexdigest()
    return Crops(folder, pixels, entries, index["policy"], tuple(index["skipped"]), digest)


def _reason(row: dict[str, str]) -> str:
    return f"; {row['where']}: {row['reason']}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
