"""What a benchmark is made of: a case measures contenders in turn and holds medians of ratios against its bars.

A case is a `Case` with a function `measure` that yields a `Row` for each figure; it starts and ends its own programs. To add
one: a module with a `Case`, and its name in `cases.py`. What is heavy to import is imported within the function.
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
    """A bar: `who`'s figure of `what` as a multiple of `against`'s in the same pair, or by itself where that is None."""

    what: str
    who: str
    bound: float
    against: str | None = None
    at_most: bool = False  # else at least
    goal: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A bar and what was reached: the median over the pairs, the lowest and highest; `met` is None where nothing was measured."""

    bar: Bar
    reached: float | None
    low: float | None
    high: float | None
    met: bool | None


@dataclass(frozen=True)
class Run:
    """What a case gets: how many pairs to measure, an empty folder that is removed afterwards, and `say` for progress.

    `tiny`: as little as shows that everything works; the figures mean nothing.
    """

    pairs: int
    folder: Path
    tiny: bool
    say: Callable[[str], None]
    studies: int = 200  # of a backlog


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    bars: tuple[Bar, ...]
    measure: Callable[[Run], Iterator[Row]]


def interleaved(run: Run, what: str, unit: str, contenders: Mapping[str, Callable[[int], float]]) -> Iterator[Row]:
    """Each contender's figure, in turn, `run.pairs` times; every other time in the opposite order.

    A contender is given the number of the pair.
    """
    for pair in range(1, run.pairs + 1):
        names = list(contenders) if pair % 2 else list(contenders)[::-1]
        for who in names:
            row = Row(what, who, pair, contenders[who](pair), unit)
            run.say(f"{what}: pair {pair} of {run.pairs}: {who} {row.value:.4g} {unit}")
            yield row


def judge(bar: Bar, rows: Iterable[Row]) -> Verdict:
    """Hold what was measured against a bar."""
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
