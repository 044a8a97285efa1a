"""Write the report page of one run's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import html_report, metrics
from training.measured import LesionSet, Measured

_WORST = 24


def write_report(
    path: Path,
    name: str,
    result: dict[str, Any],
    measured: Sequence[Measured],
    sets: Sequence[LesionSet],
    scores: Sequence[np.ndarray],
) -> None:
    """Write the report page of a run's evaluation on `sets`, with their figures and calibrated scores."""
    recipe, split = result["run"]["recipe"], result["split"]
    assumed = sum(test.crops.entries[number].spacing_assumed for test in sets for number in test.part.samples)
    about = [
        ("network", f"{recipe['network']}, {recipe['head']} head, start {Path(recipe['init']).name}"),
        ("split", f"{split['how']}: {split['train']} training, {split['validation']} validation, {split['test']} test"),
        ("patients", ", ".join(f"{count} {side}" for side, count in result["patients"].items())),
        (
            "temperature, bias, threshold (validation)",
            f"{result['temperature']:.3f}, {result['bias']:.3f}, {result['threshold']:.3f}",
        ),
        ("lesions tested whose millimetres rest on an assumed spacing", assumed),
    ]
    parts = [html_report.table(("", ""), about)]
    if split["how"] == "paper":
        parts.append(html_report.note("Split of the paper: copies of one lesion stand in training and validation."))
    parts += [html_report.note(text) for text in result["remarks"]]
    parts += [html_report.heading("Figures, with 95 % bootstrap intervals over patients"), _figures(measured)]
    for one, test, score in zip(measured, sets, scores, strict=True):
        parts += _set_section(one, test, score, result["threshold"])
    parts += _reliability(result)
    parts += [html_report.heading("Training"), curves({name: result["log"]})]
    html_report.write_page(path, f"Evaluation of {name}", parts)


def _reliability(result: dict[str, Any]) -> list[str]:
    """Return sections on findings, the undecided band and robustness to image changes, if measured."""
    parts = []
    rows = [
        (
            one["name"],
            found["findings"],
            found["lesions"],
            *(_interval(found[key]) for key in ("auc", "auc_of_lesions", "gain")),
        )
        for one in result["sets"]
        if (found := one["findings"])
    ]
    if rows:
        header = ("set", "breasts with both views", "lesions", "AUC of breasts", "AUC of their lesions", "gain")
        parts += [html_report.heading("Findings: CC and MLO averaged"), html_report.table(header, rows)]
    band = result["undecided"]
    if band:
        words = [(key, f"{band[key]:.3f}") for key in ("nominal", "low", "high", "coverage", "share")]
        parts += [html_report.heading("Undecided"), html_report.table(("", ""), words)]
    robust = result["robustness"]
    if robust:
        after = [(f"AUC, {name}", f"{value:.3f}") for name, value in robust["auc_after"].items()]
        head = [("lesions", robust["lesions"]), ("change class when turned", f"{robust['flips']:.3f}")]
        words = [*head, ("AUC", f"{robust['auc']:.3f}"), *after]
        parts += [html_report.heading("Turned, grained, blurred"), html_report.table(("", ""), words)]
    return parts


def _interval(figure: Sequence[float]) -> str:
    return f"{figure[0]:.3f} ({figure[1]:.3f} to {figure[2]:.3f})"


def _figures(measured: Sequence[Measured]) -> str:
    header = (
        "set",
        "lesions",
        "malignant",
        "AUC",
        "accuracy",
        "accuracy at 0.5",
        "sensitivity at 90 % specificity",
        "ECE",
    )
    rows = [
        (
            one.name,
            one.lesions,
            one.malignant,
            one.auc,
            one.accuracy,
            one.accuracy_at_half,
            one.sensitivity_at_90_specificity,
            f"{one.calibration_error:.3f}",
        )
        for one in measured
    ]
    return html_report.table(header, rows)


def _set_section(one: Measured, test: LesionSet, score: np.ndarray, threshold: float) -> list[str]:
    truth = test.crops.malignant[test.part.samples]
    false_positive, true_positive, _ = metrics.roc(score, truth)
    roc = html_report.Line(
        f"AUC {one.auc.value:.3f}", list(zip(false_positive.tolist(), true_positive.tolist(), strict=True))
    )
    bins = html_report.Line("measured", [(said, share) for said, share, _ in one.reliability], dots=True)
    furthest = np.argsort(-np.abs(score - threshold))
    wrong = [place for place in furthest if (score[place] >= threshold) != truth[place]][:_WORST]
    worst = [
        (
            test.crops.roi(int(test.part.samples[place])),
            f"{test.crops.entries[test.part.samples[place]].identity}: {score[place]:.2f}, "
            f"truth {'malignant' if truth[place] else 'benign'}",
        )
        for place in wrong
    ]
    return [
        html_report.heading(one.name),
        html_report.chart("ROC", "1 - specificity", "sensitivity", [roc], diagonal=True),
        html_report.chart("Reliability", "probability of malignancy", "share malignant", [bins], diagonal=True),
        html_report.confusion_table(f"Confusion matrix at the threshold, {threshold:.3f}", one.confusion),
        *(
            [f"<h3>Called wrongly at {threshold:.3f}, the worst first</h3>", html_report.roi_sheet(worst)]
            if worst
            else []
        ),
    ]


def curves(logs: dict[str, list[dict[str, float]]]) -> str:
    """Return charts of validation accuracy and loss by epoch, one line per run; `logs` are by run name."""
    most = max((line["epoch"] for log in logs.values() for line in log), default=1)
    charts = []
    for caption, key in (("Validation accuracy", "validation_accuracy"), ("Validation loss", "validation_loss")):
        lines = [html_report.Line(name, [(line["epoch"], line[key]) for line in log]) for name, log in logs.items()]
        top = max((y for line in lines for _, y in line.points), default=1.0)
        charts.append(
            html_report.chart(caption, "epoch", key.split("_")[1], lines, x_range=(0, most), y_range=(0, max(1.0, top)))
        )
    return "".join(charts)
