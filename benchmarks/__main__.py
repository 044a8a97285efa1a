"""`python -m benchmarks` (or `make bench`): mammod beside alternative programs, in turn, on this machine.

Uses loopback only, and stops every program that it starts. For the cost of the training's input pipeline see
`python -m benchmarks.training_throughput`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import report
from benchmarks.case import Case, Run
from benchmarks.cases import CASES


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases, or beginnings of their names; none: all.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="How often each contender runs, in turn.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for a JSON file and a plot of each case.")] = Path("bench-output"),
    tiny: Annotated[
        bool, typer.Option(help="A few small objects, to see that it works; the figures mean nothing.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(help="Where to put spools and archives meanwhile: the disk that is measured.")
    ] = None,
    studies: Annotated[
        int, typer.Option(min=1, help="Of the whole way's backlog; each takes some 80 MB of disk.")
    ] = 200,
    listed: Annotated[bool, typer.Option("--list", help="Print the cases and end.")] = False,
) -> None:
    """Measure, print medians and ratios beside their bars, and write them to a folder."""
    if listed:
        for case in CASES:
            print(f"{case.name}\t{case.about}")
        return
    summary = []
    for case in _selected(names or []):
        begun = time.monotonic()
        print(f"== {case.name}: {case.about}", flush=True)
        scratch_of_case = Path(tempfile.mkdtemp(prefix="mammod-bench-", dir=scratch))
        try:
            rows = list(
                case.measure(Run(pairs, scratch_of_case, tiny, lambda text: print(f"   {text}", flush=True), studies))
            )
        finally:
            shutil.rmtree(scratch_of_case, ignore_errors=True)
        report.write(out, case, rows, tiny=tiny)
        summary += report.lines(case, rows)
        print(f"   {time.monotonic() - begun:.0f} s", flush=True)
    print("\n".join(["", *summary, "", f"written to {out}/"]))


def _selected(names: list[str]) -> list[Case]:
    for name in names:
        if not any(case.name.startswith(name) for case in CASES):
            raise typer.BadParameter(f"there is no case {name!r}; there are: {', '.join(case.name for case in CASES)}")
    exact = {case.name for case in CASES}
    return [
        case
        for case in CASES
        if not names or any(case.name == name or (name not in exact and case.name.startswith(name)) for name in names)
    ]


if __name__ == "__main__":
    typer.run(main)
