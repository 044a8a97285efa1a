"""Measuring a trained network on lesions it never saw: figures with intervals, one HTML report, JSON beside it.

Temperature and threshold are chosen on the validation part alone, then held fixed for every test set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.calibration import calibrate
from training import html_report, metrics
from training.batches import part_of, predict
from training.errors import DataError
from training.fit import Build, load_run
from training.roi_cache import Crops
from training.split import Part

_WORST = 24
# Below this many lesions, or with an interval wider than that, no claim about an accuracy can be made.
_FEW, _WIDE = 200, 0.1
_CHOSEN_ON = "validation part, on which temperature and threshold were chosen"


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % bootstrap interval over patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} (too few for an interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Measured:
    """One test set's figures; `reliability` holds (mean probability, share malignant, lesions) of each filled bin."""

    name: str
    lesions: int
    malignant: int
    patients: int
    auc: Figure
    accuracy: Figure
    accuracy_at_half: Figure
    sensitivity_at_90_specificity: Figure
    log_loss: float
    calibration_error: float
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]


@dataclass(frozen=True)
class LesionSet:
    """Lesions to test on: a name for people, the cache and which of its crops."""

    name: str
    crops: Crops
    part: Part


def evaluate_run(
    folder: Path,
    crops: Crops,
    out: Path,
    *,
    external: Sequence[LesionSet] = (),
    build: Build | None = None,
) -> dict[str, Any]:
    """Evaluate the finished run in `folder` on its own test part, by kind of lesion, and on `external` sets.

    `crops` is the cache the run was made from. A lesion of an external set whose patient, of the same data set, trained or
    validated the run is left out. A run without a test part (split "all") shows its validation part, by that name.
    Writes `out`/evaluation.json, report.html and predictions.json, and returns what evaluation.json holds.

    Raises:
        RunError: the run did not finish.
        DataError: a cache of other content, or cut by another policy than the run's, or one whose patients were all seen.
    """
    model, run = load_run(folder, build)
    if crops.digest != run["crops"]["digest"]:
        raise DataError(f"{crops.folder} is not the cache that the run in {folder} was made from")
    for test in external:
        if test.crops.policy != crops.policy:
            raise DataError(f"{test.crops.folder} was cut by another policy than the run's crops; prepare it alike")
    sides = {name: np.array(run["split"][name]["samples"], int) for name in ("train", "validation", "test")}
    held = part_of(crops, sides["validation"])
    temperature, threshold = calibration(predict(model, crops, held), crops.malignant[held.samples])
    known = {_owner(crops, number) for side in ("train", "validation") for number in sides[side]}
    own = _by_kind(crops, sides["test"]) if len(sides["test"]) else [LesionSet(_CHOSEN_ON, crops, held)]
    sets = [*own, *(_unseen(test, known) for test in external)]
    scores = [calibrate(predict(model, test.crops, test.part), temperature).astype(float) for test in sets]
    measured = [measure(test, score, threshold) for test, score in zip(sets, scores, strict=True)]
    result = {
        "run": {key: run[key] for key in ("recipe", "versions")},
        "policy": crops.policy,
        "split": {"how": run["split"]["how"], **{name: len(numbers) for name, numbers in sides.items()}},
        "patients": {name: len(np.unique(crops.patients[numbers])) for name, numbers in sides.items()},
        "temperature": temperature,
        "threshold": threshold,
        "sets": [asdict(one) for one in measured],
        "remarks": [text for one in measured if (text := too_small(one))],
        "log": run["log"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (out / "predictions.json").write_text(json.dumps(_predictions(sets, scores), indent=1), encoding="utf-8")
    _write_report(out / "report.html", folder.name, result, measured, sets, scores)
    return result


def calibration(probability: np.ndarray, malignant: np.ndarray) -> tuple[float, float]:
    """(temperature, threshold on calibrated probabilities) from validation scores; (1, 0.5) where a class is
    missing.
    """
    if malignant.all() or not malignant.any():
        return 1.0, 0.5
    temperature = metrics.fit_temperature(probability, malignant)
    threshold = metrics.best_threshold(calibrate(probability, temperature).astype(float), malignant)
    return temperature, min(max(threshold, 1e-6), 1 - 1e-6)


def measure(test: LesionSet, probability: np.ndarray, threshold: float) -> Measured:
    """All figures of one test set from its calibrated probabilities (N,)."""
    truth = test.crops.malignant[test.part.samples]
    patients = test.crops.patients[test.part.samples]

    def figure(metric: metrics.Metric) -> Figure:
        both = bool(truth.any() and not truth.all())
        value = metric(probability, truth) if both else math.nan
        return Figure(value, *metrics.interval(metric, probability, truth, patients))

    return Measured(
        name=test.name,
        lesions=len(truth),
        malignant=int(truth.sum()),
        patients=len(np.unique(patients)),
        auc=figure(metrics.auc),
        accuracy=figure(lambda p, y: metrics.accuracy(p, y, threshold)),
        accuracy_at_half=figure(metrics.accuracy),
        sensitivity_at_90_specificity=figure(metrics.sensitivity_at),
        log_loss=metrics.log_loss(probability, truth),
        calibration_error=metrics.calibration_error(probability, truth),
        confusion=metrics.confusion(probability, truth, threshold),
        reliability=metrics.reliability(probability, truth),
    )


def too_small(measured: Measured) -> str | None:
    """Why a test set bears no claim, or None."""
    width = measured.auc.high - measured.auc.low
    if measured.lesions >= _FEW and width <= _WIDE:
        return None
    interval = "no interval of the AUC" if math.isnan(width) else f"an interval of the AUC {width:.2f} wide"
    return (
        f"{measured.name}: {measured.lesions} lesions of {measured.patients} patients, and {interval}: too few to tell "
        "networks apart that differ by a few points, or to claim an accuracy"
    )


def _owner(crops: Crops, number: int) -> tuple[str, str]:
    entry = crops.entries[number]
    return entry.dataset, entry.patient


def _unseen(test: LesionSet, known: set[tuple[str, str]]) -> LesionSet:
    """The set without lesions of patients the network has seen."""
    numbers = [number for number in test.part.samples if _owner(test.crops, number) not in known]
    if not numbers:
        raise DataError(f"{test.name}: the run trained or validated on every patient of {test.crops.folder}")
    return LesionSet(test.name, test.crops, part_of(test.crops, numbers))


def _by_kind(crops: Crops, numbers: np.ndarray) -> list[LesionSet]:
    """The test part as a whole and, where it mixes kinds, each kind apart."""
    kinds = [crops.entries[number].kind for number in numbers]
    name = f"held-out {crops.entries[0].dataset}"
    if len(set(kinds)) == 1:
        return [LesionSet(f"{name}, {kinds[0]} only", crops, part_of(crops, numbers))]
    apart = [
        LesionSet(f"{name}, {kind} only", crops, part_of(crops, numbers[np.array([k == kind for k in kinds])]))
        for kind in sorted(set(kinds))
    ]
    return [LesionSet(f"{name}, all kinds", crops, part_of(crops, numbers)), *apart]


def _predictions(sets: Sequence[LesionSet], scores: Sequence[np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    return {
        test.name: [
            {
                "identity": test.crops.entries[number].identity,
                "patient": test.crops.entries[number].patient,
                "malignant": test.crops.entries[number].malignant,
                "probability": round(float(value), 6),
            }
            for number, value in zip(test.part.samples, score, strict=True)
        ]
        for test, score in zip(sets, scores, strict=True)
    }


def _write_report(
    path: Path,
    name: str,
    result: dict[str, Any],
    measured: Sequence[Measured],
    sets: Sequence[LesionSet],
    scores: Sequence[np.ndarray],
) -> None:
    recipe, split = result["run"]["recipe"], result["split"]
    assumed = sum(test.crops.entries[number].spacing_assumed for test in sets for number in test.part.samples)
    about = [
        ("network", f"{recipe['network']}, {recipe['head']} head, start {Path(recipe['init']).name}"),
        ("split", f"{split['how']}: {split['train']} training, {split['validation']} validation, {split['test']} test"),
        ("patients", ", ".join(f"{count} {side}" for side, count in result["patients"].items())),
        ("temperature, threshold (validation)", f"{result['temperature']:.3f}, {result['threshold']:.3f}"),
        ("lesions tested whose millimetres rest on an assumed spacing", assumed),
    ]
    parts = [html_report.table(("", ""), about)]
    if split["how"] == "paper":
        parts.append(html_report.note("Split of the paper: copies of one lesion stand in training and validation."))
    parts += [html_report.note(text) for text in result["remarks"]]
    parts += [html_report.heading("Figures, with 95 % bootstrap intervals over patients"), _figures(measured)]
    for one, test, score in zip(measured, sets, scores, strict=True):
        parts += _set_section(one, test, score, result["threshold"])
    parts += [html_report.heading("Training"), curves({name: result["log"]})]
    html_report.write_page(path, f"Evaluation of {name}", parts)


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
    """Validation accuracy and loss by epoch, one line for each run; `logs` by the name of the run."""
    most = max((line["epoch"] for log in logs.values() for line in log), default=1)
    charts = []
    for caption, key in (("Validation accuracy", "validation_accuracy"), ("Validation loss", "validation_loss")):
        lines = [html_report.Line(name, [(line["epoch"], line[key]) for line in log]) for name, log in logs.items()]
        top = max((y for line in lines for _, y in line.points), default=1.0)
        charts.append(
            html_report.chart(caption, "epoch", key.split("_")[1], lines, x_range=(0, most), y_range=(0, max(1.0, top)))
        )
    return "".join(charts)
