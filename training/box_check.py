"""Compare the outlines read from CBIS-DDSM's masks with a list of its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.csv_reader import read_rows
from training.samples import Sample

SAME = 0.8  # intersection over union from which two boxes are the same lesion
_COLUMNS = ("id", "minx", "miny", "maxx", "maxy", "lesion_type")
_KINDS = {"mass": "mass", "calc": "calcification", "calcification": "calcification"}
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the film


@dataclass(frozen=True)
class BoxCheck:
    """Hold the best overlap of one lesion with a listed box of its film and kind; 0 if none is listed."""

    identity: str
    overlap: float

    @property
    def is_same(self) -> bool:
        """Return whether the list contains this lesion."""
        return self.overlap >= SAME


def check_boxes(samples: Sequence[Sample], path: Path) -> list[BoxCheck]:
    """Compare the outlines of CBIS-DDSM samples with the boxes in the CSV `path`.

    Its columns: id (PATIENT_SIDE_VIEW), box in film pixels, kind.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    listed: dict[tuple[str, str], list[Box]] = {}
    for row in read_rows(path, _COLUMNS):
        left, top, right, bottom = (float(row[name]) for name in ("minx", "miny", "maxx", "maxy"))
        key = row["id"], _KINDS.get(row["lesion_type"], "other")
        listed.setdefault(key, []).append((left, top, right, bottom))
    checks = []
    for sample in samples:
        film = "_".join([sample.patient, sample.descriptors.get("side", ""), sample.descriptors.get("view", "")])
        (left, top), (right, bottom) = np.min(sample.outline, axis=0), np.max(sample.outline, axis=0)
        boxes = listed.get((film, sample.kind), [])
        checks.append(
            BoxCheck(sample.identity, max((overlap((left, top, right, bottom), box) for box in boxes), default=0.0))
        )
    return checks


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common)
