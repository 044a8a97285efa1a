"""Write the report of a replay: two CSV tables, an HTML page, and a summary on the terminal."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from daemon.monitoring.status_report import RESEARCH_USE
from daemon.tools.replay_result import LesionComparison, ReplayedJob
from model.bundle import Bundle

COLUMNS = (
    "job", "source_uid", "lesion", "image_uid", "frame", "old_bundle", "old_probability", "old_class",
    "new_probability", "new_class", "difference", "flip", "reports",
)  # fmt: skip
MAX_SHOWN = 500  # lesions on the page, largest change first
SIDE, LEFT = 320, 40  # of the plot, in pixels
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330 }
table { border-collapse: collapse; margin: .8rem 0 } th, td { padding: .2rem .7rem; border-bottom: 1px solid #d8dde6 }
th { text-align: left } td { font-variant-numeric: tabular-nums } .note { background: #fff4d6; padding: .6rem 1rem }
.flip td { background: #fbe4dc }
"""


def write_report(output: Path, bundle: Bundle, results: Sequence[ReplayedJob], console: Console) -> None:
    """Write `comparison.csv`, `not-replayed.csv` and `index.html` to `output`; print the summary."""
    rows = [row for job in results for row in _rows(job)]
    failed = [job for job in results if job.reason is not None]
    with (output / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with (output / "not-replayed.csv").open("w", encoding="utf-8", newline="") as file:
        plain = csv.writer(file)
        plain.writerow(("job", "source_uid", "reason"))
        plain.writerows((job.job, job.source_uid, job.reason) for job in failed)
    summary = _summary(results, rows, bundle)
    (output / "index.html").write_text(_page(summary, rows, failed, bundle), encoding="utf-8")
    for name, value in summary:
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
    for job in failed[:10]:
        console.print(f"job {job.job} not replayed: {job.reason}", style="red", highlight=False, soft_wrap=True)
    if len(failed) > 10:
        console.print(f"{len(failed) - 10} more in {output / 'not-replayed.csv'}", style="red", highlight=False)
    console.print(f"see {output / 'index.html'} and {output / 'comparison.csv'}", highlight=False, soft_wrap=True)


def _rows(job: ReplayedJob) -> list[dict[str, Any]]:
    return [
        {
            "job": job.job,
            "source_uid": job.source_uid,
            "lesion": number,
            "image_uid": lesion.image_uid,
            "frame": lesion.frame,
            "old_bundle": job.bundle,
            "old_probability": lesion.old,
            "old_class": _class(lesion.old_malignant),
            "new_probability": lesion.new,
            "new_class": _class(lesion.new_malignant),
            "difference": round(lesion.new - lesion.old, 4),
            "flip": _flip(lesion),
            "reports": " ".join(job.reports),
        }
        for number, lesion in enumerate(job.lesions, start=1)
    ]


def _class(malignant: bool) -> str:
    return "malignant" if malignant else "benign"


def _flip(lesion: LesionComparison) -> str:
    if lesion.old_malignant == lesion.new_malignant:
        return ""
    return f"{_class(lesion.old_malignant)} to {_class(lesion.new_malignant)}"


def _summary(results: Sequence[ReplayedJob], rows: Sequence[dict[str, Any]], bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    flips = Counter(row["flip"] for row in rows if row["flip"])
    differences = [row["difference"] for row in rows]
    trained = "" if manifest.trained else ", UNTRAINED: its numbers mean nothing"
    summary = [
        (
            "new bundle",
            f"{manifest.name} {manifest.version} ({bundle.digest[:12]}), threshold {manifest.threshold:g}{trained}",
        ),
        ("jobs replayed", f"{sum(job.reason is None for job in results)} of {len(results)}"),
        ("lesions compared", str(len(rows))),
        ("class changed", ", ".join(f"{count} {flip}" for flip, count in sorted(flips.items())) or "none"),
    ]
    if differences:
        size = [abs(difference) for difference in differences]
        summary.append(
            (
                "difference (new - old)",
                f"mean {fmean(differences):+.4f}, mean size {fmean(size):.4f}, largest {max(size):.4f}",
            )
        )
    return summary


def _page(
    summary: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]], failed: Sequence[ReplayedJob], bundle: Bundle
) -> str:
    changed = sorted(rows, key=lambda row: (not row["flip"], -abs(row["difference"])))[:MAX_SHOWN]
    names = ("job", "lesion", "image_uid", "frame", "old_probability", "new_probability", "difference", "flip")
    body = "".join(
        f"<tr{' class=flip' if row['flip'] else ''}>" + "".join(f"<td>{escape(str(row[name]))}</td>" for name in names)
        for row in changed
    )
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    shown = f" ({MAX_SHOWN} of {len(rows)}, largest change first)" if len(rows) > MAX_SHOWN else ""
    missing = "".join(f"<tr><td>{job.job}<td>{escape(job.reason or '')}</tr>" for job in failed[:MAX_SHOWN])
    parts = [
        f'<p class="note">{RESEARCH_USE}. A replay: none of these reports was sent, and none should be.</p>',
        "<table>" + "".join(f"<tr><th>{escape(name)}<td>{escape(value)}</tr>" for name, value in summary) + "</table>",
        _plot(rows, bundle.manifest.threshold) if rows else "",
        f"<h2>Lesions{shown}</h2><table><tr>{head}</tr>{body}</table>" if rows else "",
        f"<h2>Not replayed</h2><table><tr><th>job<th>reason</tr>{missing}</table>" if failed else "",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Replay</title><style>{_STYLE}</style>'
        f"<h1>Replay under {escape(bundle.manifest.name)} {escape(bundle.manifest.version)}</h1>{''.join(parts)}</html>\n"
    )


def _plot(rows: Sequence[dict[str, Any]], threshold: float) -> str:
    """Draw the new probability over the old one, a dot for each lesion, as SVG."""

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * SIDE, 10 + (1 - y) * SIDE

    (left, bottom), (right, top), (_, level) = at(0, 0), at(1, 1), at(0, threshold)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{"#c2502b" if row["flip"] else "#1f5fa8"}" fill-opacity=".55"/>'
        for row in rows
        for x, y in [at(row["old_probability"], row["new_probability"])]
    )
    ticks = "".join(
        f'<text x="{at(v, 0)[0]:.0f}" y="{bottom + 16:.0f}" font-size="11" text-anchor="middle">{v:g}</text>'
        f'<text x="{LEFT - 5}" y="{at(0, v)[1] + 4:.0f}" font-size="11" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return (
        f'<svg width="{LEFT + SIDE + 20}" height="{SIDE + 50}" role="img" aria-label="new over old probability">'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#8a93a3"/>'
        f'<path d="M{left} {bottom}L{right} {top}" stroke="#8a93a3" stroke-dasharray="5 4"/>'
        f'<path d="M{left} {level:.1f}H{right}" stroke="#c9ced8"/>{ticks}{dots}'
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 34:.0f}" font-size="12" text-anchor="middle">'
        "old probability; up: new; orange: another class</text></svg>"
    )
