"""Read data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.cbis import read_cbis
from training.csv_dataset import read_table
from training.errors import DataError
from training.mias import read_mias
from training.samples import Reading
from training.squeezed import read_squeezed

SOURCES = ("cbis", "squeezed", "ddsm299", "mias", "table")  # ddsm299 is a case of squeezed


def read_source(
    source: str,
    data: Path,
    tables: Path,
    *,
    workers: int = 1,
    report: Callable[[int, int], None] | None = None,
    outlines: Path | None = None,
) -> Reading:
    """Read the data set `data` of the kind `source`.

    `tables` is the folder of CBIS-DDSM's four CSV files, for "cbis" and "squeezed". `outlines` is the file
    that keeps the outlines found in the masks of "cbis".

    Raises:
        DataError: there is no such source; see the readers.
    """
    if source == "cbis":
        return read_cbis(data, tables, workers=workers, report=report, outlines=outlines)
    if source in ("squeezed", "ddsm299"):
        return read_squeezed(data, tables)
    simple = {"mias": read_mias, "table": read_table}
    if source not in simple:
        raise DataError(f"there is no source {source!r}; known: {', '.join(SOURCES)}")
    return simple[source](data)
