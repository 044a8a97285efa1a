"""Read CBIS-DDSM's case-description CSV files: columns, labels and lesion descriptors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from training.csv_reader import read_rows
from training.samples import NO_CALLBACK

FILES = re.compile(r"(calc|mass)_case_description_(train|test)_set\.csv")
LABELS = {"BENIGN": False, NO_CALLBACK: False, "MALIGNANT": True}
KINDS = {"mass": "mass", "calcification": "calcification"}
_NEEDED = ("patient_id", "left_or_right_breast", "image_view", "abnormality_type", "pathology")
_DESCRIPTORS = {
    "pathology": ("pathology",),
    "side": ("left_or_right_breast",),
    "view": ("image_view",),
    "density": ("breast_density",),
    "assessment": ("assessment",),
    "subtlety": ("subtlety",),
    "shape": ("mass_shape", "calc_type"),
    "margin": ("mass_margins", "calc_distribution"),
}


def descriptors_of(row: dict[str, str]) -> dict[str, str]:
    """Return a row's lesion descriptors, keyed as in `training.samples.DESCRIPTORS`, without empty values."""
    found = {name: next((row[c] for c in columns if row.get(c)), "") for name, columns in _DESCRIPTORS.items()}
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class FilmTable:
    """Hold the rows of the case-description files, by (patient, side, view, kind)."""

    rows: dict[tuple[str, str, str, str], list[dict[str, str]]]

    def descriptors(self, patient: str, side: str, view: str, kind: str, pathology: str) -> dict[str, str]:
        """Return the descriptors on which all rows of this film, kind and label agree.

        Descriptors that differ between several lesions of a film are left out. `pathology` is "BENIGN" or
        "MALIGNANT".
        """
        rows = self.rows.get((patient, side, view, kind), [])
        fitting = [row for row in rows if row["pathology"].startswith(pathology)]
        agreed = set.intersection(*(set(row.items()) for row in fitting)) if fitting else set()
        return dict(agreed)


def read_film_tables(folder: Path) -> FilmTable:
    """Read the case-description files in `folder`; without any, the table is empty.

    Raises:
        DataError: a file lacks a column.
    """
    rows: dict[tuple[str, str, str, str], list[dict[str, str]]] = {}
    for path in sorted(path for path in folder.glob("*.csv") if FILES.fullmatch(path.name)):
        for row in read_rows(path, _NEEDED):
            about = descriptors_of(row)
            key = (row["patient_id"], about.get("side", ""), about.get("view", ""), row["abnormality_type"])
            rows.setdefault(key, []).append(about)
    return FilmTable(rows)
