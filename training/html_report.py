"""Build one self-contained HTML page: tables, line charts as SVG, ROIs as PNG, no external resources."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330 }
table { border-collapse: collapse; margin: .8rem 0 } th, td { padding: .25rem .8rem; border-bottom: 1px solid #d8dde6 }
th { text-align: left } th + th, td + td { text-align: right } .note { background: #fff4d6; padding: .6rem 1rem }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top } figcaption { font-size: 13px }
.roi figure { width: 150px } .roi img { width: 150px; display: block }
"""
_COLOURS = ("#1f5fa8", "#c2502b", "#2d8659", "#7b4ba3")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 380, 300, 52, 44, 12


class Line:
    """Describe one line of a chart: `points` (x, y), marked with dots if `dots`."""

    def __init__(self, name: str, points: Sequence[tuple[float, float]], *, dots: bool = False) -> None:
        self.name, self.points, self.dots = name, [point for point in points if np.isfinite(point).all()], dots


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write the page of HTML `parts` under a heading and the research-use notice."""
    notice = '<p class="note">Research software: not a medical device; nothing here supports a diagnosis.</p>'
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>{notice}{''.join(parts)}</html>\n",
        encoding="utf-8",
    )


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{escape(text)}</h2>"


def note(text: str) -> str:
    """Return a highlighted paragraph."""
    return f'<p class="note">{escape(text)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; cells are escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def chart(
    caption: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    x_range: tuple[float, float] = (0, 1),
    y_range: tuple[float, float] = (0, 1),
    diagonal: bool = False,
) -> str:
    """Return a line chart with axes, about five ticks each, and a legend.

    `diagonal` draws the line of chance or of perfect agreement.
    """

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return _LEFT + across * (_WIDTH - _LEFT - 12), _TOP + (1 - up) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for x in _ticks(*x_range):
        left, bottom = at(x, y_range[0])
        parts.append(_text(left, bottom + 16, f"{x:.3g}", "middle"))
    for y in _ticks(*y_range):
        end, top = at(x_range[1], y)
        parts.append(_text(_LEFT - 6, top + 4, f"{y:.3g}", "end"))
        parts.append(f'<path d="M{_LEFT} {top:.1f}H{end:.1f}" stroke="#e3e7ee"/>')
    if diagonal:
        parts.append(_path([at(x_range[0], y_range[0]), at(x_range[1], y_range[1])], "#8a93a3", dash=True))
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [at(*point) for point in line.points]
        parts.append(_path(points, colour))
        if line.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        legend = _HEIGHT - _BOTTOM - 14 - 16 * (len(lines) - 1 - number)
        parts.append(_text(_WIDTH - 16, legend, line.name, "end", colour))
    middle = (_LEFT + _WIDTH) / 2
    parts.append(_text(middle, _HEIGHT - 6, x_label, "middle"))
    parts.append(
        f'<g transform="translate(13 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>'
    )
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _ticks(low: float, high: float) -> list[float]:
    """Return six ticks from `low` to `high`; of a range of whole numbers (epochs) at most six whole ones."""
    if high - low > 1 and float(low).is_integer() and float(high).is_integer():
        return [float(tick) for tick in range(round(low), round(high) + 1, max(1, math.ceil((high - low) / 5)))]
    return [low + (high - low) * step / 5 for step in range(6)]


def confusion_table(caption: str, matrix: Sequence[Sequence[int]]) -> str:
    """Return a table of the matrix [[true negative, false positive], [false negative, true positive]]."""
    rows = [(truth, *counts) for truth, counts in zip(("benign", "malignant"), matrix, strict=True)]
    body = table(("truth", "called benign", "called malignant"), rows)
    return f"<figure>{body}<figcaption>{escape(caption)}</figcaption></figure>"


def roi_sheet(rois: Sequence[tuple[np.ndarray, str]]) -> str:
    """Return ROIs, float (S, S) in 0..1, each with its caption."""
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{_png(roi)}" alt=""><figcaption>{escape(text)}</figcaption></figure>'
        for roi, text in rois
    )
    return f'<div class="roi">{figures}</div>'


def _png(roi: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.rint(np.clip(roi, 0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _path(points: Sequence[tuple[float, float]], colour: str, *, dash: bool = False) -> str:
    route = " ".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))
    style = 'stroke-dasharray="5 4"' if dash else ""
    return f'<path d="{route}" fill="none" stroke="{colour}" stroke-width="1.8" {style}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#4a5364") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
