"""Types of a benchmark: a case measures contenders in turn and compares medians of ratios with its bars.

The function `measure` of a `Case` yields a `Row` for each figure and starts and stops its own programs. To
add a case, write a module with a `Case` and list it in `cases.py`. Import heavy packages inside the
function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Row:
    """One figure: of `who`, in the interleaved run number `pair` (from 1)."""

    what: str  # such as "27 MB, 1 association"
    who: str
    pair: int
    value: float
    unit: str


@dataclass(frozen=True)
class Bar:
    """A bar: `who`'s figure of `what`, relative to `against`'s in the same pair, or absolute."""

    what: str
    who: str
    bound: float
    against: str | None = None
    at_most: bool = False  # else at least
    goal: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A bar and the result: median, lowest and highest over the pairs; `met` is None without figures."""

    bar: Bar
    reached: float | None
    low: float | None
    high: float | None
    met: bool | None


@dataclass(frozen=True)
class Run:
    """The parameters of a run: number of pairs, an empty folder deleted afterwards, and `say` for progress.

    `tiny`: the least that shows that everything works; the figures mean nothing.
    """

    pairs: int
    folder: Path
    tiny: bool
    say: Callable[[str], None]
    studies: int = 200  # of a backlog


@dataclass(frozen=True)
class Case:
    """A named benchmark with its bars."""

    name: str
    about: str
    bars: tuple[Bar, ...]
    measure: Callable[[Run], Iterator[Row]]


def interleaved(run: Run, what: str, unit: str, contenders: Mapping[str, Callable[[int], float]]) -> Iterator[Row]:
    """Yield each contender's figure in turn, `run.pairs` times, every other time in reverse order.

    A contender is called with the number of the pair.
    """
    for pair in range(1, run.pairs + 1):
        names = list(contenders) if pair % 2 else list(contenders)[::-1]
        for who in names:
            row = Row(what, who, pair, contenders[who](pair), unit)
            run.say(f"{what}: pair {pair} of {run.pairs}: {who} {row.value:.4g} {unit}")
            yield row


def judge(bar: Bar, rows: Iterable[Row]) -> Verdict:
    """Compare the figures with a bar."""
    figures: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.what == bar.what:
            figures.setdefault(row.who, {})[row.pair] = row.value
    ours = figures.get(bar.who, {})
    theirs = figures.get(bar.against, {}) if bar.against is not None else dict.fromkeys(ours, 1.0)
    reached = [ours[pair] / theirs[pair] for pair in ours if pair in theirs]
    if not reached:
        return Verdict(bar, None, None, None, None)
    middle = median(reached)
    return Verdict(bar, middle, min(reached), max(reached), middle <= bar.bound if bar.at_most else middle >= bar.bound)
