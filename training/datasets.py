"""The data sets that can be read, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.cbis import read_cbis
from training.csv_dataset import read_table
from training.ddsm299 import read_ddsm299
from training.errors import DataError
from training.mias import read_mias
from training.samples import Reading

SOURCES = ("cbis", "ddsm299", "mias", "table")


def read_source(
    source: str, data: Path, tables: Path, *, workers: int = 1, report: Callable[[int, int], None] | None = None
) -> Reading:
    """Read the data set `data` of the kind `source`; `tables` is where the CSV files of "cbis" lie.

    Raises:
        DataError: there is no such source; see the readers.
    """
    if source == "cbis":
        return read_cbis(data, tables, workers=workers, report=report)
    simple = {"ddsm299": read_ddsm299, "mias": read_mias, "table": read_table}
    if source not in simple:
        raise DataError(f"there is no source {source!r}; known: {', '.join(SOURCES)}")
    return simple[source](data)
