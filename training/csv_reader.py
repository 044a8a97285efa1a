"""Read a CSV file with named columns; errors are one line each."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from training.errors import DataError


def read_rows(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file.

    Column names are lowercased, with "_" for blanks, because data sets mix both forms. Values are stripped,
    because CBIS-DDSM ends quoted paths with a line break.

    Raises:
        DataError: the file cannot be read, is empty, or lacks a column of `needed`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip().lower().replace(" ", "_") for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            missing = [name for name in needed if name not in columns]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(map(repr, missing))}; it has {', '.join(columns) or 'no columns'}"
                )
            # A short row has None for its last columns, a long one a list under None.
            return [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file: {error}") from error
