"""Measure a trained network on lesions it never saw: figures with intervals, an HTML report, JSON.

Temperature, bias, threshold and the undecided band are chosen on the validation part alone, then held fixed
for every test set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.calibration import calibrate
from model.manifest import Undecided
from training import conformal, metrics
from training.batches import part_of, predict, predict_rois
from training.errors import DataError
from training.evaluation_report import write_report
from training.fit import Build, load_run
from training.measured import LesionSet, measure, too_small
from training.recipe import Recipe
from training.robustness import robustness
from training.roi_cache import Crops

if TYPE_CHECKING:
    import keras

    from training.split import Part

_NOMINAL = 0.9  # coverage of the undecided band
_CHOSEN_ON = "validation part, on which temperature and threshold were chosen"


def evaluate_run(
    folder: Path,
    crops: Crops,
    out: Path,
    *,
    external: Sequence[LesionSet] = (),
    robust: bool = False,
    build: Build | None = None,
) -> dict[str, Any]:
    """Evaluate the finished run in `folder` on its own test part, by kind of lesion, and on `external` sets.

    `crops` is the cache the run was made from. Lesions of an external set are left out if their patient, of
    the same data set, trained or validated the run. A run without a test part (split "all") shows its
    validation part, labelled as such. `robust` measures the effect of turns, grain, blur and gamma on the
    validation part. Writes `out`/evaluation.json, report.html and predictions.json, and returns the content
    of evaluation.json.

    Raises:
        RunError: the run did not finish.
        DataError: a cache has other content, was cut by another policy than the run's, or holds only seen
            patients.
    """
    model, run = load_run(folder, build)
    if crops.digest != run["crops"]["digest"]:
        raise DataError(f"{crops.folder} is not the cache that the run in {folder} was made from")
    for test in external:
        if test.crops.policy != crops.policy:
            raise DataError(f"{test.crops.folder} was cut by another policy than the run's crops; prepare it alike")
    recipe = Recipe(**run["recipe"])
    sides = {name: np.array(run["split"][name]["samples"], int) for name in ("train", "validation", "test")}
    held = part_of(crops, sides["validation"])
    raw = predict(model, crops, held, orientations=recipe.orientations)
    chosen = calibration(raw, crops.malignant[held.samples], crops.patients[held.samples])
    known = {_owner(crops, number) for side in ("train", "validation") for number in sides[side]}
    own = _by_kind(crops, sides["test"]) if len(sides["test"]) else [LesionSet(_CHOSEN_ON, crops, held)]
    sets = [*own, *(_unseen(test, known) for test in external)]
    temperature, bias, threshold = chosen["temperature"], chosen["bias"], chosen["threshold"]
    answers = [predict(model, test.crops, test.part, orientations=recipe.orientations) for test in sets]
    scores = [calibrate(answer, temperature, bias).astype(float) for answer in answers]
    measured = [measure(test, score, threshold) for test, score in zip(sets, scores, strict=True)]
    result = {
        "run": {key: run[key] for key in ("recipe", "versions")},
        "policy": crops.policy,
        "split": {"how": run["split"]["how"], **{name: len(numbers) for name, numbers in sides.items()}},
        "patients": {name: len(np.unique(crops.patients[numbers])) for name, numbers in sides.items()},
        "prevalence": float(crops.malignant[held.samples].mean()),
        **chosen,
        "robustness": _robustness(model, held, crops, recipe, chosen) if robust else None,
        "sets": [asdict(one) for one in measured],
        "remarks": [text for one in measured if (text := too_small(one))],
        "log": run["log"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (out / "predictions.json").write_text(json.dumps(_predictions(sets, scores), indent=1), encoding="utf-8")
    write_report(out / "report.html", folder.name, result, measured, sets, scores)
    return result


def calibration(probability: np.ndarray, malignant: np.ndarray, patients: np.ndarray) -> dict[str, Any]:
    """Return what is fitted to validation scores: temperature, bias, threshold and undecided band.

    The threshold is on calibrated probabilities. They are 1, 0, 0.5 and None if a class is missing.
    """
    if malignant.all() or not malignant.any():
        return {"temperature": 1.0, "bias": 0.0, "threshold": 0.5, "undecided": None}
    temperature, bias = metrics.fit_temperature_and_bias(probability, malignant)
    score = calibrate(probability, temperature, bias).astype(float)
    threshold = min(max(metrics.best_threshold(score, malignant), 1e-6), 1 - 1e-6)
    band = conformal.fit_band(score, malignant, _NOMINAL)
    undecided = None
    if band.low <= band.high:
        coverage, share = conformal.measured_coverage(score, malignant, patients, nominal=_NOMINAL)
        undecided = Undecided(
            low=band.low,
            high=band.high,
            nominal=_NOMINAL,
            coverage=coverage,
            share=share,
            data="the validation part, by two-fold cross-validation over patients",
            count=len(score),
        ).model_dump(mode="json")
    return {"temperature": temperature, "bias": bias, "threshold": threshold, "undecided": undecided}


def _robustness(model: keras.Model, held: Part, crops: Crops, recipe: Recipe, chosen: dict[str, Any]) -> dict[str, Any]:
    rois = np.stack([crops.roi(int(number)) for number in held.samples])
    settings = {key: chosen[key] for key in ("temperature", "bias", "threshold")}
    ask = partial(predict_rois, model)
    return robustness(ask, rois, crops.malignant[held.samples], orientations=recipe.orientations, **settings)


def _owner(crops: Crops, number: int) -> tuple[str, str]:
    entry = crops.entries[number]
    return entry.dataset, entry.patient


def _unseen(test: LesionSet, known: set[tuple[str, str]]) -> LesionSet:
    """Return the set without lesions of patients the network has seen."""
    numbers = [number for number in test.part.samples if _owner(test.crops, number) not in known]
    if not numbers:
        raise DataError(f"{test.name}: the run trained or validated on every patient of {test.crops.folder}")
    return LesionSet(test.name, test.crops, part_of(test.crops, numbers))


def _by_kind(crops: Crops, numbers: np.ndarray) -> list[LesionSet]:
    """Return the test part as a whole and, if it mixes kinds, each kind apart."""
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
