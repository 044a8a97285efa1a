"""Write the demo's page: one self-contained HTML file with picture, outline and result of each lesion."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from config import __version__
from daemon.demo.results import Row, class_name
from daemon.lesions.lesion import Region

_CLOSE_UP = 360  # pixels of the page, square
_WHOLE_HEIGHT = 220
_CONTEXT = 2.5  # side of the close-up, in lesion sizes
_MIN_CONTEXT = 500  # pixels of the image

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f8; --card: #fff; --ink: #1b1f24; --soft: #5c6670; --line: #d8dde2;
  --warn: #7a4b00; --warn-ground: #fff4dc; --bar: #2f6fab; --track: #e3e8ed; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1d2125; --ink: #e8eaed; --soft: #9aa4ae;
  --line: #333a41; --warn: #ffd48a; --warn-ground: #3a2d12; --bar: #6fb1ee; --track: #30373e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; }
h2 { margin: 0; font-size: 1.05rem; }
p { margin: .4rem 0; }
.soft, footer { color: var(--soft); font-size: .88rem; }
.note { padding: .6rem .9rem; border-left: 4px solid var(--warn); background: var(--warn-ground); color: var(--warn);
  font-weight: 600; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); margin: 1.5rem 0; }
article { padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.pictures { display: flex; gap: .6rem; align-items: flex-start; margin: .7rem 0; }
.pictures svg { background: #000; border-radius: 4px; height: auto; }
.close { flex: 0 1 300px; min-width: 0; }
.whole { flex: 0 1 130px; min-width: 0; }
.outline { fill: none; stroke: #ffd23f; stroke-width: 2; vector-effect: non-scaling-stroke; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.track { display: inline-block; width: 8rem; height: .6rem; margin-left: .5rem; border-radius: 3px; background: var(--track);
  overflow: hidden; }
.track i { display: block; height: 100%; background: var(--bar); }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
a { color: inherit; }
"""


def write_page(path: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write the page to `path`, with `notes` above the results; links are relative to its folder."""
    path.write_text(_page(rows, notes, path.parent), encoding="utf-8")


def _page(rows: Sequence[Row], notes: Sequence[str], folder: Path) -> str:
    warnings = "\n".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mammod demo: {len(rows)} lesions</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>mammod demo</h1>
<p>{len(rows)} marked lesions on eight mammograms, as read back from the structured reports that the archive stored.
Outline and result of each lesion are those of its report.</p>
{warnings}
</header>
<div class="wide">
<table>
<thead><tr><th>Lesion</th><th>Breast, view</th><th>Marked by</th><th>Truth</th><th class="number">Probability of cancer</th>
<th>Class</th><th class="number">Seconds</th></tr></thead>
<tbody>
{"".join(_table_row(number, row) for number, row in enumerate(rows, start=1))}</tbody>
</table>
</div>
<main>
{"".join(_cards(rows, folder))}</main>
<footer>
<p>Seconds are from the later of image and lesion object to the stored report. Truth is CBIS-DDSM's pathology.
Ten lesions show that the pipeline works; they are too few to measure accuracy.</p>
<p>Images and truth: CBIS-DDSM (Sawyer-Lee et al. 2016, The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2016.7O02S9CY),
Creative Commons Attribution 3.0. Made by mammod {escape(__version__)}.</p>
</footer>
</body>
</html>
"""


def _table_row(number: int, row: Row) -> str:
    return (
        f'<tr><td><a href="#lesion-{number}">{escape(row.name)}</a></td><td>{_breast_and_view(row)}</td>'
        f"<td>{_marked_by(row)}</td><td>{class_name(row.lesion.malignant)}</td>"
        f'<td class="number">{_percent(row)}</td><td>{class_name(row.reported.malignant)}</td>'
        f'<td class="number">{row.seconds:.2f}</td></tr>\n'
    )


def _cards(rows: Sequence[Row], folder: Path) -> list[str]:
    """Build a card for each row; decode each image once and hold one image at a time."""
    cards = []
    shown, pixels = None, np.zeros((0, 0))
    for number, row in enumerate(rows, start=1):
        if row.sent.image.path != shown:
            shown, pixels = row.sent.image.path, pydicom.dcmread(row.sent.image.path).pixel_array
        cards.append(_card(number, row, pixels, folder))
    return cards


def _card(number: int, row: Row, pixels: np.ndarray, folder: Path) -> str:
    report = row.reported.report.relative_to(folder).as_posix()
    return f"""<article id="lesion-{number}">
<h2>{escape(row.name)}</h2>
<div class="pictures">{_close_up(row, pixels)}{_whole(row, pixels)}</div>
<dl>
<dt>Breast, view</dt><dd>{_breast_and_view(row)}</dd>
<dt>Marked by</dt><dd>{_marked_by(row)}</dd>
<dt>Truth</dt><dd>{class_name(row.lesion.malignant)}</dd>
<dt>Probability of cancer</dt><dd>{_percent(row)}{_bar(row)}</dd>
<dt>Class</dt><dd>{class_name(row.reported.malignant)}</dd>
<dt>Seconds</dt><dd>{row.seconds:.2f}</dd>
<dt>Report</dt><dd><a href="{escape(report)}">{escape(report)}</a></dd>
</dl>
</article>
"""


def _percent(row: Row) -> str:
    return f"{100 * row.reported.probability:.2f} %"


def _bar(row: Row) -> str:
    return f'<span class="track"><i style="width:{100 * row.reported.probability:.2f}%"></i></span>'


def _breast_and_view(row: Row) -> str:
    side = {"L": "left", "R": "right"}[row.sent.case.laterality]
    return f"{side}, {escape(row.sent.case.view)}"


def _marked_by(row: Row) -> str:
    plan = row.sent.plan
    kind = "segmentation (SEG)" if plan.shapes[0].kind == "SEG" else "structured report (SR)"
    return f"{kind}, sent {'before' if plan.before_image else 'after'} its image"


def _close_up(row: Row, pixels: np.ndarray) -> str:
    """Draw the lesion and its surroundings, shifted inwards at the edge of the image."""
    rows, columns = pixels.shape
    points = row.reported.region.points
    low, high = points.min(axis=0), points.max(axis=0)
    side = int(min(max(_CONTEXT * (high - low).max(), _MIN_CONTEXT), rows, columns))
    left, top = np.clip((low + high - side) / 2, 0, (columns - side, rows - side)).astype(int)
    part = pixels[top : top + side, left : left + side]
    return _picture(part, (_CLOSE_UP, _CLOSE_UP), "close", row.reported.region, left, top, f"{row.name}, close-up")


def _whole(row: Row, pixels: np.ndarray) -> str:
    rows, columns = pixels.shape
    size = (round(_WHOLE_HEIGHT * columns / rows), _WHOLE_HEIGHT)
    return _picture(pixels, size, "whole", row.reported.region, 0, 0, f"{row.name}, whole mammogram")


def _picture(
    pixels: np.ndarray, size: tuple[int, int], kind: str, region: Region, left: int, top: int, title: str
) -> str:
    """Return an SVG in image coordinates, the outline's own: pixels as PNG, region on top."""
    rows, columns = pixels.shape
    image = _png(pixels, size)
    return (
        f'<svg class="{kind}" viewBox="{left} {top} {columns} {rows}" width="{size[0]}" height="{size[1]}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<image href="{image}" x="{left}" y="{top}" width="{columns}" height="{rows}"/>{outline(region)}</svg>'
    )


def _png(pixels: np.ndarray, size: tuple[int, int]) -> str:
    """Return a data URI of an 8-bit PNG; grey values from the 0.5th to the 99.5th percentile."""
    step = max(1, min(pixels.shape) // (2 * min(size)))  # twice the displayed resolution is enough
    pixels = pixels[::step, ::step]
    low, high = np.percentile(pixels, (0.5, 99.5))
    grey = np.clip((pixels - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def outline(region: Region) -> str:
    """Return a region as an SVG element in image coordinates ((column, row) in pixels; PS3.3 C.18.6.1.2)."""
    points = region.points
    if region.graphic_type == "CIRCLE":
        radius = float(np.hypot(*(points[1] - points[0])))
        return f'<circle class="outline" cx="{points[0, 0]:g}" cy="{points[0, 1]:g}" r="{radius:.2f}"/>'
    if region.graphic_type == "ELLIPSE":
        centre = points.mean(axis=0)
        major, minor = points[1] - points[0], points[3] - points[2]
        turn = float(np.degrees(np.arctan2(major[1], major[0])))
        return (
            f'<ellipse class="outline" rx="{np.hypot(*major) / 2:.2f}" ry="{np.hypot(*minor) / 2:.2f}" '
            f'transform="translate({centre[0]:g} {centre[1]:g}) rotate({turn:g})"/>'
        )
    listed = " ".join(f"{column:g},{row:g}" for column, row in points)
    return f'<polygon class="outline" points="{listed}"/>'
