"""Export a finished and evaluated run as a bundle.

Its card says what was measured, on what data, and what was not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.bundle import RESEARCH_USE, WEIGHTS, Architecture, Bundle, Description, Metric, load_bundle, save_bundle
from model.crop import CropPolicy
from model.manifest import Familiar
from model.normalise import NormalisationPolicy
from training.crossvalidate import RESULT
from training.errors import RunError
from training.fit import Build, load_run
from training.recipe import ORIENTATIONS
from training.run_folder import read_run

_METRICS = {
    "auc": "AUC",
    "accuracy": "accuracy at the threshold",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
}
# Each fold's network has a threshold of its own, so pooled scores are cut at 0.5.
_POOLED = {"auc": _METRICS["auc"], "accuracy_at_half": "accuracy at 0.5"} | {
    "sensitivity_at_90_specificity": _METRICS["sensitivity_at_90_specificity"]
}


def export_run(
    folder: Path,
    evaluation: Path,
    out: Path,
    *,
    name: str,
    version: str,
    data: str,
    licence: str,
    limits: Sequence[str] = (),
    crossvalidation: Path | None = None,
    familiar: Familiar | None = None,
    build: Build | None = None,
) -> Bundle:
    """Save the run in `folder` as bundle `out` with the figures of its `evaluation` folder.

    `data` describes the training data, `licence` the permitted use of the weights, `limits` what a user must
    know; the remarks of the evaluation are added to `limits`. The figures of the same network and head in the
    folder `crossvalidation` precede those of the run, and are labelled as figures of that recipe's networks.
    `familiar` describes the pixels of the training ROIs.

    Raises:
        RunError: the run did not finish, was not evaluated, started from a run that is gone, or the
            evaluation is of another run; the cross-validation holds no such network and head, or is of crops
            cut otherwise.
        BundleError: `out` exists.
    """
    model, run = load_run(folder, build)
    try:
        result = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{evaluation} holds no evaluation; run `mammod-train evaluate` first ({error})") from error
    if result["run"]["recipe"] != run["recipe"] or result["log"] != run["log"]:
        raise RunError(f"the evaluation in {evaluation} is not of the run in {folder}; evaluate it again")
    recipe, policy = run["recipe"], result["policy"]
    before = _crossvalidated(crossvalidation, recipe, policy) if crossvalidation else []
    crop = CropPolicy(**policy["crop"])
    description = Description(
        name=name,
        version=version,
        architecture=Architecture(
            network=recipe["network"], head=recipe["head"], input_size=crop.size, dropout=recipe["dropout"]
        ),
        crop=crop,
        normalisation=NormalisationPolicy(**policy["normalisation"]),
        threshold=result["threshold"],
        temperature=result["temperature"],
        bias=result["bias"],
        prevalence=result["prevalence"] if 0 < result["prevalence"] < 1 else None,
        orientations=ORIENTATIONS[recipe.get("orientations", 1)],
        undecided=result["undecided"],
        familiar=familiar,
        trained=True,
        training={"data": data, **_about(result, run)},
        metrics=(*before, *(metric for one in result["sets"] for metric in _metrics(one, one["name"]))),
        limits=(*limits, *result["remarks"]),
        licence=licence,
        intended_use=RESEARCH_USE,
    )
    return save_bundle(out, description, model)


def _about(result: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    split, patients, recipe = result["split"], result["patients"], run["recipe"]
    sides = ", ".join(f"{split[side]} {side} lesions of {patients[side]} patients" for side in patients)
    return {
        "split": f"{split['how']}: {sides}",
        "start": _start(recipe["init"]),
        "recipe": {key: value for key, value in recipe.items() if key != "init"},
        "epochs": len(run["log"]),
        "calibration": "temperature and threshold chosen on the validation part alone",
        "crops": run["crops"]["digest"],
        "versions": run["versions"],
    }


def _start(init: str) -> str:
    """Return what a run began from, traced through the earlier runs that it started from."""
    path = Path(init)
    if init == "none":
        return "random weights"
    if path.suffix != ".npz":
        return f"ImageNet weights ({path.name})"
    if path.name == WEIGHTS:
        before = load_bundle(path.parent, allow_untrained=True).manifest
        return f"the weights of bundle {before.name} {before.version}"
    earlier = read_run(path.parent)
    size, epochs = earlier["crops"]["policy"]["crop"]["size"], len(earlier["log"])
    return f"{_start(earlier['recipe']['init'])}, then {epochs} epochs with ROIs of {size} x {size} pixels"


def _crossvalidated(folder: Path, recipe: dict[str, Any], policy: dict[str, Any]) -> list[Metric]:
    """Return the pooled held-out figures of the recipe's network and head."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no cross-validation; run `mammod-train crossvalidate` first ({error})"
        ) from error
    if result["policy"] != policy:
        raise RunError(f"the cross-validation in {folder} is of crops cut by another policy than the run's")
    wanted = (recipe["network"], recipe["head"])
    for cell in result["cells"]:
        if (cell["recipe"]["network"], cell["recipe"]["head"]) == wanted:
            return [
                metric
                for one in cell["sets"]
                for metric in _metrics(one, f"{one['name']}: networks of this recipe, not this one", _POOLED)
            ]
    raise RunError(f"the cross-validation in {folder} holds no {' with the head '.join(wanted)}")


def _metrics(one: dict[str, Any], data: str, titles: dict[str, str] = _METRICS) -> list[Metric]:
    if not 0 < one["malignant"] < one["lesions"]:
        return []
    figures = [
        (title, one[key]["value"], one[key]["low"], one[key]["high"], one["lesions"]) for key, title in titles.items()
    ]
    if found := one.get("findings"):
        figures.append(("AUC of breasts with both views averaged", *found["auc"], found["lesions"]))
    return [
        Metric(name=name, value=value, low=_number(low), high=_number(high), data=data, count=count)
        for name, value, low, high, count in figures
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
