"""From a finished and evaluated run to a bundle that tells what was measured, on what, and what was not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.bundle import RESEARCH_USE, Architecture, Bundle, Description, Metric, save_bundle
from model.crop import CropPolicy
from model.normalise import NormalisationPolicy
from training.errors import RunError
from training.fit import Build, load_run

_METRICS = {
    "auc": "AUC",
    "accuracy": "accuracy at the threshold",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
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
    build: Build | None = None,
) -> Bundle:
    """Save the run in `folder` as bundle `out` with the figures of its `evaluation` folder.

    `data` says in words what it was trained on, `licence` what the weights may be used for, `limits` what a user must
    know; the remarks of the evaluation are added to them.

    Raises:
        RunError: the run did not finish, was not evaluated, or the evaluation is of another run.
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
        trained=True,
        training={"data": data, **_about(result, run)},
        metrics=tuple(metric for one in result["sets"] for metric in _metrics(one)),
        limits=(*limits, *result["remarks"]),
        licence=licence,
        intended_use=RESEARCH_USE,
    )
    return save_bundle(out, description, model)


def _about(result: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    split, patients, recipe = result["split"], result["patients"], run["recipe"]
    sides = ", ".join(f"{split[side]} {side} lesions of {patients[side]} patients" for side in patients)
    start = Path(recipe["init"]).name
    return {
        "split": f"{split['how']}: {sides}",
        "start": "random weights" if start == "none" else f"ImageNet weights ({start})",
        "recipe": {key: value for key, value in recipe.items() if key != "init"},
        "epochs": len(run["log"]),
        "calibration": "temperature and threshold chosen on the validation part alone",
        "crops": run["crops"]["digest"],
        "versions": run["versions"],
    }


def _metrics(one: dict[str, Any]) -> list[Metric]:
    both = 0 < one["malignant"] < one["lesions"]
    return [
        Metric(
            name=title,
            value=one[key]["value"],
            low=one[key]["low"],
            high=one[key]["high"],
            data=one["name"],
            count=one["lesions"],
        )
        for key, title in _METRICS.items()
        if both
    ]
