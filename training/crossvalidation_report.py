"""Write the report page of a cross-validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import html_report, metrics
from training.measured import Figure
from training.paper_grid import Cell
from training.roi_cache import Crops

_FINDINGS = ("auc", "auc_of_lesions", "gain")


@dataclass(frozen=True, eq=False)
class Pooled:
    """Hold one cell's calibrated scores.

    `held_out` (N,) scores the cache's lesions, each by the fold that tested it. Each external set has scores
    (lesions, folds), NaN if a fold's network had seen the patient.
    """

    cell: Cell
    held_out: np.ndarray
    external: dict[str, np.ndarray]
    recipe: dict[str, Any]
    auc_of_folds: tuple[float, ...]


def write_report(path: Path, pooled: Sequence[Pooled], result: dict[str, Any], crops: Crops) -> None:
    """Write the report page of a cross-validation."""
    rows = result["cells"]
    about = [
        ("lesions", f"{result['lesions']}, {result['malignant']} malignant, of {result['patients']} patients"),
        ("folds", f"{result['folds']} by patient; every lesion is scored by a network that never saw its patient"),
        ("crops", json.dumps(crops.policy["crop"])),
    ]
    lines = [html_report.Line(one.cell.name, _roc(one.held_out, crops.malignant)) for one in pooled]
    parts = [
        html_report.table(("", ""), about),
        *(html_report.note(text) for text in result["remarks"]),
        *_held_out(rows),
        html_report.chart("ROC of the pooled held-out scores", "1 - specificity", "sensitivity", lines, diagonal=True),
        html_report.heading("AUC of each fold"),
        html_report.table(
            ("run", *(f"fold {fold}" for fold in range(result["folds"]))),
            [(row["cell"], *(f"{value:.3f}" for value in row["auc_of_folds"])) for row in rows],
        ),
        *_differences(result["differences"]),
        *_other_data(rows),
    ]
    html_report.write_page(path, f"Cross-validation of {', '.join(row['cell'] for row in rows)}", parts)


def _held_out(rows: list[dict[str, Any]]) -> list[str]:
    keys = ("auc", "accuracy_at_half", "sensitivity_at_90_specificity")
    lines = [
        (row["cell"], one["name"], one["lesions"], *figures(one, *keys), f"{one['calibration_error']:.3f}")
        for row in rows
        for one in row["sets"]
    ]
    header = ("run", "set", "lesions", "AUC", "accuracy at 0.5", "sensitivity at 90 % specificity", "ECE")
    parts = [
        html_report.heading("Held-out lesions, with 95 % bootstrap intervals over patients"),
        html_report.table(header, lines),
    ]
    breasts = [
        (row["cell"], one["findings"]["findings"], *(str(Figure(*one["findings"][key])) for key in _FINDINGS))
        for row in rows
        for one in row["sets"][:1]
        if one["findings"]
    ]
    if breasts:
        of_breasts = ("run", "breasts with both views", "AUC of breasts", "AUC of their lesions", "gain")
        parts += [html_report.heading("Findings: CC and MLO averaged"), html_report.table(of_breasts, breasts)]
    return parts


def _differences(differences: list[dict[str, Any]]) -> list[str]:
    if not differences:
        return []
    lines = [(f"{one['first']} over {one['second']}", *figures(one, "auc", "accuracy_at_half")) for one in differences]
    return [
        html_report.heading("Differences, on the same patients"),
        html_report.table(("", "AUC", "accuracy at 0.5"), lines),
    ]


def _other_data(rows: list[dict[str, Any]]) -> list[str]:
    if not rows[0]["external"]:
        return []
    lines = [
        (row["cell"], one["name"], one["lesions"], one["malignant"], *figures(one, "auc", "accuracy_at_half"))
        for row in rows
        for one in row["external"]
    ]
    return [
        html_report.heading("Other data: the mean over the folds' networks"),
        html_report.table(("run", "set", "lesions", "malignant", "AUC", "accuracy at 0.5"), lines),
    ]


def _roc(scores: np.ndarray, malignant: np.ndarray) -> list[tuple[float, float]]:
    false_positive, true_positive, _ = metrics.roc(scores, malignant)
    return list(zip(false_positive.tolist(), true_positive.tolist(), strict=True))


def figures(row: dict[str, Any], *keys: str) -> tuple[str, ...]:
    """Return measured values with their intervals, as text."""
    return tuple(str(Figure(**row[key])) for key in keys)
