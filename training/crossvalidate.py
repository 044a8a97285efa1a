"""Cross-validate by patient: every lesion is scored by a network that never saw its patient.

Networks are compared in pairs. Each fold of each cell is a run of its own below `out`/runs. Finished runs are
kept, so the command may be stopped and started again. Scores are calibrated by each fold's own validation
part and then pooled. Intervals are bootstrap over patients; the difference of two networks is drawn on the
same patients for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training import metrics
from training.batches import part_of
from training.crossvalidation_report import Pooled, figures, write_report
from training.errors import RunError
from training.evaluate import evaluate_run
from training.fit import Build, Report, fit
from training.measured import Figure, LesionSet, measure, too_small
from training.paper_grid import Cell, recipe_of
from training.recipe import Recipe
from training.roi_cache import Crops
from training.run_folder import check_same_run
from training.split import Split, split_samples

RESULT, REPORT = "crossvalidation.json", "report.html"


def crossvalidate(
    cells: Sequence[Cell],
    recipe: Recipe,
    weights: str | Path,
    crops: Crops,
    out: Path,
    *,
    folds: int = 5,
    validation: float = 0.2,
    start: Path | None = None,
    external: Sequence[LesionSet] = (),
    workers: int = 2,
    report: Callable[[Cell, int], Report] | None = None,
    build: Build | None = None,
) -> dict[str, Any]:
    """Train and measure the missing runs of `cells` x `folds` and write the results.

    They are `out`/crossvalidation.json, whose content is returned, and report.html. `weights` is as for
    `training.paper_grid.reproduce`. With `start`, the folder of an earlier cross-validation with the same
    folds, each run starts from that one's final weights instead (at another ROI size, say). `report` returns
    the callback for a run's steps.

    Raises:
        RunError: a weights file or a run to start from is missing, or such a run tested other lesions, found
            before anything is trained; a run in `out` is of another recipe, data or split; see `fit`.
        DataError: see `split_samples` and `evaluate_run`.
    """
    splits = [_split(crops, folds, fold, validation, recipe) for fold in range(folds)]
    of_run = {
        (cell, fold): _recipe(recipe, cell, weights, start, fold) for cell in cells for fold in range(folds)
    }  # all recipes are checked before the first run is trained
    if start is not None:
        for cell, fold in of_run:
            _check_start(_folder(start, cell, fold), crops, splits[fold])
    for fold, split in enumerate(splits):
        for cell in cells:
            folder = _folder(out, cell, fold)
            if _measured(folder, external):
                check_same_run(folder, of_run[cell, fold], crops, split)
                continue
            hears = report(cell, fold) if report else None
            fit(of_run[cell, fold], crops, split, folder, workers=workers, report=hears, build=build)
            evaluate_run(folder, crops, folder, external=external, build=build)
            keras.backend.clear_session()
    pooled = [_pool(out, cell, folds, crops, external) for cell in cells]
    result = _result(pooled, crops, folds, validation, external)
    (out / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    write_report(out / REPORT, pooled, result, crops)
    return result


def show(result: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Return summary rows: what was measured, number of lesions, AUC and accuracy with their intervals."""
    return [
        (f"{cell['cell']}, {one['name']}", one["lesions"], *figures(one, "auc", "accuracy_at_half"))
        for cell in result["cells"]
        for one in (*cell["sets"], *cell["external"])
    ]


def _folder(out: Path, cell: Cell, fold: int) -> Path:
    return out / "runs" / f"{cell.name}-fold{fold}"


def _recipe(recipe: Recipe, cell: Cell, weights: str | Path, start: Path | None, fold: int) -> Recipe:
    if start is None:
        return recipe_of(recipe, cell, weights)
    final = _folder(start, cell, fold) / "final.npz"
    if not final.is_file():
        raise RunError(f"there is no {final} to start from; finish that cross-validation first")
    return replace(recipe, network=cell.network, head=cell.head, init=str(final))


def _split(crops: Crops, folds: int, fold: int, validation: float, recipe: Recipe) -> Split:
    patients, malignant = crops.patients.tolist(), crops.malignant.tolist()
    groups = [None] * len(crops)  # a data set's own test part is divided into folds like the rest
    return split_samples(
        patients,
        malignant,
        groups,
        folds=folds,
        fold=fold,
        validation=validation,
        seed=recipe.seed,
        copies=recipe.augmentation == "copies",
    )


def _check_start(folder: Path, crops: Crops, split: Split) -> None:
    """Refuse weights that may have been trained on a lesion of this test part."""
    try:
        tested = {row["identity"] for row in next(iter(_read(folder / "predictions.json").values()))}
    except OSError as error:
        raise RunError(f"{folder} was not evaluated; finish that cross-validation first") from error
    if not {crops.entries[number].identity for number in split.test.samples} <= tested:
        raise RunError(
            f"{folder} tested other lesions than this fold does; start from one of the same folds and lesions"
        )


def _measured(folder: Path, external: Sequence[LesionSet]) -> bool:
    """Return whether the run in `folder` was evaluated, on these external sets too."""
    try:
        measured = {one["name"] for one in _read(folder / "evaluation.json")["sets"]}
    except OSError:
        return False
    return {test.name for test in external} <= measured


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _pool(out: Path, cell: Cell, folds: int, crops: Crops, external: Sequence[LesionSet]) -> Pooled:
    held_out = np.full(len(crops), np.nan)
    others = {test.name: np.full((len(test.part), folds), np.nan) for test in external}
    aucs = []
    for fold in range(folds):
        folder = _folder(out, cell, fold)
        evaluation, scores = _read(folder / "evaluation.json"), _read(folder / "predictions.json")
        whole = evaluation["sets"][0]
        held_out[_read(folder / "run.json")["split"]["test"]["samples"]] = _probabilities(scores[whole["name"]])
        aucs.append(whole["auc"]["value"])
        for test in external:
            of_lesion = {row["identity"]: row["probability"] for row in scores[test.name]}
            identities = (test.crops.entries[number].identity for number in test.part.samples)
            others[test.name][:, fold] = [of_lesion.get(identity, np.nan) for identity in identities]
    return Pooled(cell, held_out, others, evaluation["run"]["recipe"], tuple(aucs))


def _probabilities(rows: list[dict[str, Any]]) -> list[float]:
    return [row["probability"] for row in rows]


def _result(
    pooled: Sequence[Pooled], crops: Crops, folds: int, validation: float, external: Sequence[LesionSet]
) -> dict[str, Any]:
    name = f"{crops.entries[0].dataset}, {folds}-fold by patient"
    kinds = sorted({entry.kind for entry in crops.entries})
    rows = []
    for one in pooled:
        sets = [measure(LesionSet(name, crops, part_of(crops)), one.held_out, 0.5)]
        if len(kinds) > 1:
            for kind in kinds:
                numbers = np.flatnonzero([entry.kind == kind for entry in crops.entries])
                apart = LesionSet(f"{name}, {kind} only", crops, part_of(crops, numbers))
                sets.append(measure(apart, one.held_out[numbers], 0.5))
        rows.append(
            {
                "cell": one.cell.name,
                "recipe": one.recipe,
                "auc_of_folds": one.auc_of_folds,
                "sets": [asdict(measured) for measured in sets],
                "external": [_external(test, one.external[test.name]) for test in external],
            }
        )
    return {
        "folds": folds,
        "validation": validation,
        "lesions": len(crops),
        "malignant": int(crops.malignant.sum()),
        "patients": len(np.unique(crops.patients)),
        "policy": crops.policy,
        "crops": crops.digest,
        "cells": rows,
        "differences": [_difference(first, second, crops) for first, second in combinations(pooled, 2)],
        "remarks": [
            remark
            for one in pooled[:1]
            if (remark := too_small(measure(LesionSet(name, crops, part_of(crops)), one.held_out, 0.5)))
        ],
    }


def _external(test: LesionSet, scores: np.ndarray) -> dict[str, Any]:
    """Return figures of an external set: means over the folds' networks, none of them trained on it."""
    truth, patients = test.crops.malignant[test.part.samples], test.crops.patients[test.part.samples]
    seen_by_all = np.isnan(scores).all(axis=1)
    scores, truth, patients = scores[~seen_by_all], truth[~seen_by_all], patients[~seen_by_all]

    def figure(metric: metrics.Metric) -> dict[str, float]:
        mean = _over_folds(metric)
        return asdict(Figure(mean(scores, truth), *metrics.interval(mean, scores, truth, patients, draws=500)))

    return {
        "name": test.name,
        "lesions": len(truth),
        "malignant": int(truth.sum()),
        "patients": len(np.unique(patients)),
        "auc": figure(metrics.auc),
        "accuracy_at_half": figure(metrics.accuracy),
    }


def _over_folds(metric: metrics.Metric) -> metrics.Metric:
    def mean(scores: np.ndarray, truth: np.ndarray) -> float:
        columns = [(scores[:, fold], ~np.isnan(scores[:, fold])) for fold in range(scores.shape[1])]
        return float(np.nanmean([metric(column[scored], truth[scored]) for column, scored in columns]))

    return mean


def _difference(first: Pooled, second: Pooled, crops: Crops) -> dict[str, Any]:
    """Return by how much the first cell's AUC and accuracy exceed the second's, on the same patients."""
    scores = np.stack([first.held_out, second.held_out], axis=1)

    def figure(metric: metrics.Metric) -> dict[str, float]:
        def gain(both: np.ndarray, truth: np.ndarray) -> float:
            return metric(both[:, 0], truth) - metric(both[:, 1], truth)

        return asdict(
            Figure(gain(scores, crops.malignant), *metrics.interval(gain, scores, crops.malignant, crops.patients))
        )

    return {
        "first": first.cell.name,
        "second": second.cell.name,
        "auc": figure(metrics.auc),
        "accuracy_at_half": figure(metrics.accuracy),
    }
