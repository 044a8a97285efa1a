"""Show `mammod-train`'s tables and progress bars on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from training.samples import Reading, counts

if TYPE_CHECKING:
    from training.box_check import BoxCheck
    from training.fit import Report

console = Console(stderr=True)
LINE_EVERY_S = 60


def show_skipped(skipped: tuple[dict[str, str], ...]) -> None:
    """Print a table of the skipped rows, if there are any."""
    if skipped:
        table = Table("skipped", "reason")
        for row in skipped:
            table.add_row(row["where"], row["reason"])
        console.print(table)


def show_boxes(checks: Sequence[BoxCheck]) -> None:
    """Print how many lesions match a listed box, and the lesions that do not."""
    table = Table("not where the list of boxes has one", "best overlap")
    for check in checks:
        if not check.is_same:
            table.add_row(check.identity, f"{check.overlap:.2f}")
    console.print(f"{sum(check.is_same for check in checks)} of {len(checks)} lesions lie where the list has them")
    if table.row_count:
        console.print(table)


def show_counts(reading: Reading, source: str) -> None:
    """Print lesions by group, kind and label; for CBIS-DDSM beside the paper's counts."""
    table = Table("lesions", "here")
    for name, count in counts(reading.samples).items():
        table.add_row(name, str(count))
    console.print(table)
    if source == "cbis":
        from training.cbis import set_beside_paper

        table = Table("side and label", "here", "paper")
        for name, here, paper in set_beside_paper(reading.samples):
            table.add_row(name, str(here), str(paper))
        console.print(table)


def figure(measured: dict[str, float]) -> str:
    """Return a measured value with its interval."""
    from training.measured import Figure

    return str(Figure(**measured))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show bars on the terminal while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def counter(progress: Progress, what: str) -> Callable[[int, int], None]:
    """Return a function that moves a bar for `what`, called with the number done and the number of all."""
    tasks: list[Any] = []

    def report(done: int, of: int) -> None:
        if not tasks:
            tasks.append(progress.add_task(what, total=of))
        progress.update(tasks[0], completed=done)

    return report


def steps(progress: Progress, prefix: str = "") -> Report:
    """Return a function that reports a run's steps.

    It moves a bar for each phase, or prints a line every minute if there is no terminal.
    """
    tasks: dict[str, Any] = {}
    said = [time.monotonic()]

    def report(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(prefix + what, total=of)
        progress.update(tasks[what], completed=done)
        if not console.is_terminal and time.monotonic() - said[0] >= LINE_EVERY_S:
            said[0] = time.monotonic()
            console.print(f"{time.strftime('%H:%M:%S')} {prefix}{what}: step {done} of {of}", highlight=False)

    return report
