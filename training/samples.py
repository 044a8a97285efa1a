"""Define `Sample`, one labelled lesion on one image, as every reader returns it, and open its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

KINDS = ("mass", "calcification", "other")
# "assessment" is the BI-RADS category; "pathology" tells BENIGN_WITHOUT_CALLBACK from BENIGN.
DESCRIPTORS = ("pathology", "side", "view", "density", "assessment", "subtlety", "shape", "margin")
NO_CALLBACK = "BENIGN_WITHOUT_CALLBACK"


@dataclass(frozen=True, eq=False)
class Sample:
    """Describe one labelled lesion on one image.

    `identity` is unique within its data set and stable between runs. `outline` is (N, 2) float of (column,
    row) in image pixels, SCOORD convention. A split must keep the lesions of a `patient` together. `group` is
    the data set's own split ("train", "test") or None. `kind` is one of KINDS. `spacing` is the millimetres
    between rows and between columns if the data set gives them and the image file does not, `spacing_assumed`
    that they rest on an assumption. `descriptors` are the data set's descriptions of the lesion, by the names
    in DESCRIPTORS, in its own words.
    """

    identity: str
    dataset: str
    image: Path
    outline: np.ndarray
    malignant: bool
    patient: str
    group: str | None
    kind: str
    spacing: tuple[float, float] | None = None
    spacing_assumed: bool = False
    descriptors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """Describe a row that gave no sample: its place and the reason it was left out."""

    where: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """Hold the result of a reader: the samples, and every row it left out with its reason."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return the outline (4, 2) of an axis-parallel box, clockwise from its top-left corner."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of samples by group, kind and label, keyed like "train mass malignant"."""
    table: dict[str, int] = {}
    for sample in samples:
        key = f"{sample.group or 'all'} {sample.kind} {'malignant' if sample.malignant else 'benign'}"
        table[key] = table.get(key, 0) + 1
    return dict(sorted(table.items()))
