"""Manage a run's folder: recipe and data, log, checkpoints; each file is renamed into place when complete.

`run.json` (recipe, data, split, versions), `log.csv`, `tensorboard/`, `state.npz` (all that is needed to
resume after a kill), `best.npz` and `final.npz` (weights).
"""

from __future__ import annotations

import csv
import json
import os
import platform
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.errors import RunError
from training.recipe import Recipe
from training.roi_cache import Crops
from training.split import Split
from training.tensorboard import append_scalars


@dataclass(frozen=True)
class Epoch:
    """Hold one line of the log.

    `auc` and `accuracy` are of the validation part, `loss` and `validation_loss` cross-entropy.
    """

    epoch: int
    learning_rate: float
    loss: float
    validation_loss: float
    validation_accuracy: float
    validation_auc: float


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of run.json of the run in `folder`, with its log under "log".

    Raises:
        RunError: there is no run in `folder`.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        with (folder / "log.csv").open(newline="") as file:
            run["log"] = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no run that can be read: {error}") from error
    return run


def check_same_run(folder: Path, recipe: Recipe, crops: Crops, split: Split) -> None:
    """Refuse a folder that holds another run.

    Raises:
        RunError: the run there is of another recipe, other crops or another split.
    """
    there = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    here = _made_of(recipe, crops, split)
    if any(_comparable(there)[key] != _comparable(here)[key] for key in ("recipe", "crops", "split")):
        raise RunError(f"{folder} holds a run of another recipe, data or split; name another folder or remove it")


def claim(folder: Path, recipe: Recipe, crops: Crops, split: Split) -> Path | None:
    """Make the folder a run of this recipe and data; return the state to resume from, None for a new run."""
    if not (folder / "run.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "run.json", json.dumps(_made_of(recipe, crops, split), indent=1).encode())
    state = folder / "state.npz"
    return state if state.exists() else None


def _made_of(recipe: Recipe, crops: Crops, split: Split) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "crops": {"folder": str(crops.folder), "digest": crops.digest, "policy": crops.policy},
        "split": {
            "how": split.how,
            **{
                side: {
                    "samples": part.samples.tolist(),
                    "copies": part.copies.tolist() if (part.copies >= 0).any() else None,
                }
                for side, part in (("train", split.train), ("validation", split.validation), ("test", split.test))
            },
            "left_out": split.left_out.tolist(),
        },
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
        },
    }


def _comparable(run: dict[str, Any]) -> dict[str, Any]:
    crops = {key: value for key, value in run["crops"].items() if key != "folder"}  # a cache may move
    recipe = asdict(Recipe(**run["recipe"]))  # a run of an earlier version lacks later keys
    return {**run, "recipe": recipe, "crops": crops}


def write_log(folder: Path, log: list[Epoch]) -> None:
    """Write the log as CSV, and its last line for TensorBoard."""
    write_csv(folder, log)
    line = log[-1]
    append_scalars(
        folder / "tensorboard", line.epoch, {key: value for key, value in asdict(line).items() if key != "epoch"}
    )


def write_csv(folder: Path, log: list[Epoch]) -> None:
    """Write `log.csv`."""
    with _renamed(folder / "log.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(log[0])))
        writer.writeheader()
        writer.writerows(asdict(line) for line in log)


def save_arrays(path: Path, variables: list[Any], about: dict[str, Any]) -> None:
    """Save variables in their order, and `about` as JSON."""
    arrays = {f"v{number}": variable.numpy() for number, variable in enumerate(variables)}
    with _renamed(path) as partial, partial.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def load_arrays(path: Path, variables: list[Any]) -> dict[str, Any]:
    """Assign the arrays of `save_arrays` to variables of the same order; return the `about` saved with them.

    Raises:
        RunError: the file cannot be read, or holds another number of variables.
    """
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} holds no weights of a run: {error}") from error
    with stored:
        if len(stored.files) != len(variables) + 1:
            raise RunError(f"{path} holds {len(stored.files) - 1} variables, the network has {len(variables)}")
        for number, variable in enumerate(variables):
            variable.assign(stored[f"v{number}"])
        about: dict[str, Any] = json.loads(str(stored["about"]))
    return about


def load_named(path: Path, model: keras.Model) -> None:
    """Give `model` the weights of a bundle's `weights.npz`, which are keyed by their Keras path.

    Raises:
        RunError: they cannot be read, or are of another network.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            values = {name: stored[name].astype(np.float32) for name in stored.files}
        for variable in model.weights:
            variable.assign(values[variable.path])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} holds no weights of {model.name}: {error}") from error


def _write(path: Path, content: bytes) -> None:
    with _renamed(path) as partial:
        partial.write_bytes(content)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yield a name to write to, renamed to `path` when the block ends: `path` is never half written."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
