"""What becomes of the figures: a table for people, a JSON file and a plot (SVG) of each case."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.case import Case, Row, Verdict, judge

_COLOURS = ("#1f5fa8", "#c2502b", "#2d8659", "#7b4ba3", "#8a6d1b")
_LINE, _NAMES, _WIDTH, _RIGHT = 24, 250, 860, 130  # pixels


def machine() -> dict[str, object]:
    """Return the machine that was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def medians(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[float]]:
    """Return the figures of all pairs by what, who and unit, in the order of measuring."""
    figures: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        figures.setdefault((row.what, row.who, row.unit), []).append(row.value)
    return figures


def lines(case: Case, rows: Sequence[Row]) -> list[str]:
    """Return the case's medians, and its bars with the results, as lines."""
    told = [f"== {case.name}: {case.about}"]
    told += [
        f"   {what}: {who}: {median(values):.4g} {unit}  ({min(values):.4g} to {max(values):.4g}, {len(values)} runs)"
        for (what, who, unit), values in medians(rows).items()
    ]
    return [*told, *(f"   {_verdict(judge(bar, rows))}" for bar in case.bars)]


def _verdict(verdict: Verdict) -> str:
    bar = verdict.bar
    wanted = f"{'<=' if bar.at_most else '>='} {bar.bound:g}{f' x {bar.against}' if bar.against else ''}"
    if bar.goal is not None:
        wanted += f" (goal {bar.goal:g})"
    if verdict.met is None:
        return f"not measured: {bar.what}: {bar.who} {wanted}"
    reached = f"{verdict.reached:.3g} ({verdict.low:.3g} to {verdict.high:.3g})"
    return f"{'met' if verdict.met else 'NOT MET'}: {bar.what}: {bar.who} {wanted}: {reached}"


def write(folder: Path, case: Case, rows: Sequence[Row], *, tiny: bool) -> None:
    """`<case>.json` and `<case>.svg` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "case": case.name,
        "about": case.about,
        "tiny": tiny,
        "machine": machine(),
        "bars": [asdict(judge(bar, rows)) for bar in case.bars],
        "rows": [asdict(row) for row in rows],
    }
    (folder / f"{case.name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / f"{case.name}.svg").write_text(plot(case, rows), encoding="utf-8")


def plot(case: Case, rows: Sequence[Row]) -> str:
    """Draw a bar for each median and a dot for each run; each quantity has its own scale from 0."""
    parts, y = [_text(8, 22, f"{case.name}: {case.about}", size=14)], 38
    figures = medians(rows)
    for what in dict.fromkeys(what for what, _, _ in figures):
        parts.append(_text(8, y + 16, what, size=12))
        y += _LINE
        mine = {(who, unit): values for (named, who, unit), values in figures.items() if named == what}
        most = max(max(values) for values in mine.values()) or 1
        scale = (_WIDTH - _NAMES - _RIGHT) / most
        for number, ((who, unit), values) in enumerate(mine.items()):
            colour, middle = _COLOURS[number % len(_COLOURS)], median(values)
            parts.append(_text(_NAMES - 8, y + 15, who, anchor="end"))
            parts.append(
                f'<rect x="{_NAMES}" y="{y + 4}" width="{max(middle * scale, 0):.1f}" height="{_LINE - 10}" '
                f'fill="{colour}" fill-opacity="0.35"/>'
            )
            parts += [
                f'<circle cx="{_NAMES + value * scale:.1f}" cy="{y + _LINE / 2 - 1}" r="2.5" fill="{colour}"/>'
                for value in values
            ]
            parts.append(_text(_WIDTH - 8, y + 15, f"{middle:.4g} {unit}", anchor="end"))
            y += _LINE
        y += 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 8}" font-family="sans-serif" role="img">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="#1c2330">{escape(text)}</text>'
