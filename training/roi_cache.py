"""Store the crops cache: every sample's ROI, cut once, as 16-bit grey in one file, with an index beside it.

A cache is a folder of `crops.npy` (N, S, S) uint16, 65535 being 1.0, and `index.json`. The optional
`wide.npy` (N, W, W) shows `margin` times as much of each image, for augmentation to turn and shift in. A
cache is written under another name and renamed when complete, so a folder with a missing or truncated file is
a broken cache and never a small one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import DataError

FULL_SCALE = 65535
_FORMAT = 1
_JOURNAL = "journal.jsonl"  # the samples done, while a cache is being written


@dataclass(frozen=True)
class Entry:
    """Describe one crop in the index.

    `box` is (left, top, right, bottom) in image pixels, `padded` the share outside.
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
    descriptors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Crops:
    """Give access to an opened cache.

    `pixels` is the file mapped read-only; `digest` (sha256 of pixels and index) identifies the whole.
    """

    folder: Path
    pixels: np.ndarray
    entries: tuple[Entry, ...]
    policy: dict[str, Any]
    skipped: tuple[dict[str, str], ...]
    digest: str
    wide: np.ndarray | None = None
    margin: float = 1.0

    def __len__(self) -> int:
        return len(self.entries)

    def roi(self, number: int) -> np.ndarray:
        """Return crop `number` as float32 (S, S) in 0..1."""
        return self.pixels[number].astype(np.float32) / FULL_SCALE

    def source(self, number: int) -> np.ndarray:
        """Return the input of augmentation: the wide crop as float32 (W, W), else the crop itself."""
        return self.roi(number) if self.wide is None else self.wide[number].astype(np.float32) / FULL_SCALE

    @property
    def malignant(self) -> np.ndarray:
        """Return the labels, bool (N,)."""
        return np.array([entry.malignant for entry in self.entries], bool)

    @property
    def patients(self) -> np.ndarray:
        """Return the patients, str (N,)."""
        return np.array([entry.patient for entry in self.entries])

    @property
    def groups(self) -> list[str | None]:
        """Return the data set's own split of each crop."""
        return [entry.group for entry in self.entries]


class PartialCache:
    """Write a cache for `folder` under another name; after a kill, a cache with the same `key` is resumed.

    `key` identifies the samples and the policy. `done` holds the identities that need not be cut again.

    Raises:
        DataError: `folder` exists already.
    """

    def __init__(self, folder: Path, size: int, at_most: int, key: str, wide: int | None = None) -> None:
        if folder.exists():
            raise DataError(f"{folder} exists already; remove it to prepare the crops again, or name another folder")
        self._folder, self._partial = folder, folder.with_name(folder.name + ".partial")
        self.entries: list[Entry] = []
        self.skipped: list[dict[str, str]] = []
        self._shapes = {"crops.npy": size} | ({} if wide is None else {"wide.npy": wide})
        if self._read_journal(key):
            self._pixels = {name: np.lib.format.open_memmap(self._partial / name, "r+") for name in self._shapes}
        else:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            self._pixels = {
                name: np.lib.format.open_memmap(self._partial / name, "w+", np.uint16, (at_most, side, side))
                for name, side in self._shapes.items()
            }
            self._note({"key": key})

    @property
    def done(self) -> set[str]:
        """Return the identities that were cut or skipped."""
        return {entry.identity for entry in self.entries} | {row["where"] for row in self.skipped}

    def add(self, entry: Entry, roi: np.ndarray, wide: np.ndarray | None = None) -> None:
        """Keep a ROI of float (size, size) in 0..1 and, if the cache has them, its wide crop."""
        for name, crop in (("crops.npy", roi), ("wide.npy", wide)):
            if name in self._pixels and crop is not None:
                self._pixels[name][len(self.entries)] = np.rint(np.clip(crop, 0, 1) * FULL_SCALE)
        self.entries.append(entry)
        self._note({"entry": vars(entry)})

    def skip(self, row: dict[str, str]) -> None:
        """Note that a sample could not be cut, and why."""
        self.skipped.append(row)
        self._note({"skipped": row})

    def finish(self, policy: dict[str, Any], skipped: list[dict[str, str]], margin: float = 1.0) -> Crops:
        """Write the index, give the cache its name and open it.

        Raises:
            DataError: there is no crop.
        """
        count = len(self.entries)
        if not count:
            shutil.rmtree(self._partial)
            raise DataError(f"no sample gave a crop; {len(skipped)} were skipped" + "".join(map(_reason, skipped[:3])))
        for name, pixels in self._pixels.items():
            pixels.flush()
            if count < len(pixels):  # the file is as long as its header says
                np.save(self._partial / "shorter.npy", pixels[:count])
                (self._partial / "shorter.npy").replace(self._partial / name)
        wide = {"sha256": _sha256(self._partial / "wide.npy"), "margin": margin} if "wide.npy" in self._pixels else None
        index = {
            "format": _FORMAT,
            "sha256": _sha256(self._partial / "crops.npy"),
            **({"wide": wide} if wide else {}),
            "policy": policy,
            "entries": [vars(entry) for entry in self.entries],
            "skipped": skipped,
        }
        (self._partial / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        (self._partial / _JOURNAL).unlink()
        self._partial.rename(self._folder)
        return open_cache(self._folder)

    def _read_journal(self, key: str) -> bool:
        """Take over the notes of an interrupted run with the same key; return whether there are any."""
        try:
            lines = (self._partial / _JOURNAL).read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0])["key"] != key:
                return False
            for line in lines[1:]:
                try:
                    noted = json.loads(line)
                except ValueError:  # the line truncated by a kill
                    break
                if "entry" in noted:
                    self.entries.append(_entry(noted["entry"]))
                else:
                    self.skipped.append(noted["skipped"])
        except (OSError, ValueError, KeyError, IndexError):
            return False
        # Without the truncated line, so that the next one starts on a line of its own.
        kept = [*({"entry": vars(entry)} for entry in self.entries), *({"skipped": row} for row in self.skipped)]
        text = "".join(json.dumps(line) + "\n" for line in ({"key": key}, *kept))
        (self._partial / _JOURNAL).write_text(text, encoding="utf-8")
        return True

    def _note(self, line: dict[str, Any]) -> None:
        with (self._partial / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_cache(
    folder: Path,
    crops: Iterator[tuple[Entry, np.ndarray]],
    size: int,
    at_most: int,
    policy: dict[str, Any],
    skipped: list[dict[str, str]],
) -> Crops:
    """Write at most `at_most` ROIs of float (size, size) in 0..1 and open the result.

    `skipped` may grow meanwhile.

    Raises:
        DataError: `folder` exists already, or there is no crop.
    """
    partial = PartialCache(folder, size, at_most, key=uuid.uuid4().hex)  # remains of an interrupted run are not reused
    for entry, roi in crops:
        partial.add(entry, roi)
    return partial.finish(policy, skipped)


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
        wide, margin = None, 1.0
        if "wide" in index:
            if _sha256(folder / "wide.npy") != index["wide"]["sha256"]:
                raise ValueError("wide.npy is not the file that index.json describes")
            wide, margin = np.load(folder / "wide.npy", mmap_mode="r"), float(index["wide"]["margin"])
        entries = tuple(_entry(entry) for entry in index["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} is no whole crops cache ({error}); remove it and run `mammod-train prepare`"
        ) from error
    digest = hashlib.sha256(text).hexdigest()
    return Crops(folder, pixels, entries, index["policy"], tuple(index["skipped"]), digest, wide, margin)


def _entry(noted: dict[str, Any]) -> Entry:
    return Entry(**{**noted, "box": tuple(noted["box"])})


def _reason(row: dict[str, str]) -> str:
    return f"; {row['where']}: {row['reason']}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
