"""Fitting one network: recipe, batches, epochs, schedule, checkpoints, logs. Keras 3 alone; any backend.

A run is a folder: `run.json` (recipe, data, split, versions), `log.csv`, `tensorboard/`, `state.npz` (all that is
needed to go on after a kill, renamed into place at the end of each epoch), `best.npz` and `final.npz` (weights).
Everything random in an epoch follows from the seed, the epoch and the sample, so an epoch that was cut short is
simply run again.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model.networks import build_network, load_backbone_weights
from training import metrics
from training.augment import Augmentation, augment, paper_copy
from training.errors import RunError
from training.roi_cache import Crops
from training.split import Part, Split
from training.tensorboard import append_scalars

SCHEDULES = ("plateau", "cosine")
OPTIMIZERS = ("sgd", "adam")
Report = Callable[[str, int, int], None]  # what is going on, steps done, steps in all
Build = Callable[["Recipe", int], keras.Model]  # a network for a recipe and the ROI's side


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The defaults are this project's; `PAPER` is the paper's.

    `optimizer` is "sgd" with `momentum`, or "adam" (without it). `schedule` "cosine" falls from `learning_rate` to 0 over
    `epochs` and ends with the last weights; the first `warm_up` epochs of it rise to it in equal steps. "plateau"
    multiplies by 0.2 after 7 epochs without a lower validation loss, stops after 13 and ends with the weights of the
    lowest. `augmentation` is "fly" (random each epoch), "copies" (the split's offline copies) or "none". `precision`
    is a Keras dtype policy. `init` is as for `load_backbone_weights`, or a finished run's `final.npz`, which goes on
    with all of its weights (at another ROI size, say). `bn_momentum` replaces batch normalisation's 0.99 of the moving
    averages, which lags on few steps; with `bn_batches` they are measured anew on that many training batches after each
    epoch. `devices` over 1 trains data-parallel through Keras' distribution.
    """

    network: str = "xception_c"
    head: str = "optimised"
    init: str = "imagenet"
    epochs: int = 12
    batch: int = 16
    learning_rate: float = 1.5e-4
    momentum: float = 0.9
    optimizer: str = "adam"
    schedule: str = "cosine"
    warm_up: int = 1
    augmentation: str = "fly"
    dropout: float = 0.5
    precision: str = "float32"
    bn_momentum: float | None = 0.9
    bn_batches: int = 0
    seed: int = 0
    devices: int = 1


PAPER = Recipe(
    epochs=50,
    learning_rate=1e-4,
    momentum=0.0,
    optimizer="sgd",
    schedule="plateau",
    warm_up=0,
    augmentation="copies",
    bn_momentum=None,
)
RECIPES = {"default": Recipe(), "paper": PAPER}
_PATIENCE, _STOP, _FACTOR = 7, 13, 0.2


class Batches(keras.utils.PyDataset):
    """The batches of one epoch: ((B, S, S, 1) float32 in 0..1, (B, 1) float32 labels), made in threads ahead of need.

    scipy's resampling leaves the interpreter lock, so threads are enough. `seed` None keeps the order and the pixels as
    they are. A last batch that is not full is left out of training: batch normalisation would see too few samples.
    """

    def __init__(
        self,
        crops: Crops,
        part: Part,
        batch: int,
        *,
        augmentation: str = "none",
        seed: int | None = None,
        epoch: int = 0,
        workers: int = 2,
    ) -> None:
        # Keras makes batches in threads only from two workers on.
        super().__init__(workers=max(workers, 2), use_multiprocessing=False, max_queue_size=8)
        self._crops, self._part, self._batch = crops, part, batch
        self._labels = crops.malignant.astype(np.float32)
        self._augmentation, self._seed, self._epoch = augmentation, seed, epoch
        self._order = np.arange(len(part))
        if seed is not None:
            np.random.default_rng([seed, epoch]).shuffle(self._order)

    def __len__(self) -> int:
        whole = len(self._order) // self._batch
        return whole if self._seed is not None and whole else math.ceil(len(self._order) / self._batch)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        places = self._order[index * self._batch : (index + 1) * self._batch]
        rois = np.stack([self._roi(int(place)) for place in places])[..., None]
        return rois, self._labels[self._part.samples[places]][:, None]

    def _roi(self, place: int) -> np.ndarray:
        sample, copy = int(self._part.samples[place]), int(self._part.copies[place])
        roi = self._crops.roi(sample)
        if copy >= 0:  # the same copy in every epoch
            return paper_copy(roi, copy, np.random.default_rng([sample, copy]))
        if self._augmentation == "fly" and self._seed is not None:
            return augment(roi, np.random.default_rng([self._seed, self._epoch, sample]), Augmentation())
        return roi


@dataclass(frozen=True)
class Epoch:
    """One line of the log. `auc` and `accuracy` are of the validation part, `loss` and `validation_loss`
    cross-entropy.
    """

    epoch: int
    learning_rate: float
    loss: float
    validation_loss: float
    validation_accuracy: float
    validation_auc: float


def fit(
    recipe: Recipe,
    crops: Crops,
    split: Split,
    folder: Path,
    *,
    workers: int = 2,
    report: Report | None = None,
    build: Build | None = None,
    until: int | None = None,
) -> tuple[keras.Model, list[Epoch]]:
    """Train to the end of the recipe, going on from `folder` where a run of the same recipe and data stands there.

    `report` hears of each step. `build` stands in for the network of the recipe. `until` stops after that epoch, to be
    gone on with later. Returns the model with its final weights, and the log.

    Raises:
        RunError: the folder holds another run; the loss is not a number; several devices without a backend for them.
    """
    _check(recipe)
    start = _claim(folder, recipe, crops, split)
    _distribute(recipe.devices)
    keras.mixed_precision.set_global_policy(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    # A run that goes on has its own weights and needs no start.
    model = (build or build_for)(recipe if start is None else replace(recipe, init="none"), crops.pixels.shape[1])
    compile_for(model, recipe)
    log = _restore(model, start) if start is not None else []
    if log:  # the CSV is an epoch ahead where a kill fell between the two
        _write_csv(folder, log)
    while not _finished(recipe, log) and (until is None or len(log) < until):
        line = _epoch(model, recipe, crops, split, log, workers, report)
        log.append(line)
        if all(line.validation_loss < past.validation_loss for past in log[:-1]):
            _save(folder / "best.npz", model.weights, {"epoch": line.epoch})
        _write_log(folder, log)
        _save(folder / "state.npz", _state(model), {"log": [asdict(past) for past in log]})
    if _finished(recipe, log):
        if recipe.schedule == "plateau":
            _load(folder / "best.npz", model.weights)
        _save(folder / "final.npz", model.weights, {"epochs": len(log)})
    return model, log


def load_run(folder: Path, build: Build | None = None) -> tuple[keras.Model, dict[str, Any]]:
    """The finished run in `folder`: its model with final weights, and what run.json says.

    Raises:
        RunError: there is no run, or it did not finish.
    """
    run = read_run(folder)
    if not (folder / "final.npz").is_file():
        raise RunError(f"the run in {folder} did not finish; go on with `mammod-train fit` into the same folder")
    keras.mixed_precision.set_global_policy("float32")
    model = (build or build_for)(replace(Recipe(**run["recipe"]), init="none"), run["crops"]["policy"]["crop"]["size"])
    _load(folder / "final.npz", model.weights)
    return model, run


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says of the run in `folder`, and its log under "log".

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


def predict(model: keras.Model, crops: Crops, part: Part, batch: int = 16) -> np.ndarray:
    """The model's probabilities of `part` (N,), float64, in the part's order."""
    batches = Batches(crops, part, batch)
    found = []
    for number in range(len(batches)):
        rois = batches[number][0]
        # One shape for every call: Keras compiles anew for another.
        padded = np.concatenate([rois, np.zeros((batch - len(rois), *rois.shape[1:]), np.float32)])
        found.append(np.asarray(model.predict_on_batch(padded), float).reshape(-1)[: len(rois)])
    return np.concatenate(found)


def part_of(crops: Crops, numbers: Any = None) -> Part:
    """A part of the samples `numbers`, or of all, as they are."""
    chosen = np.arange(len(crops)) if numbers is None else np.asarray(numbers, int)
    return Part(chosen, np.full(len(chosen), -1))


def measure_batch_norm(model: keras.Model, batches: Batches, count: int) -> None:
    """Set each batch normalisation's moving averages to their plain mean over the first `count` batches."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.momentum for layer in norms]
    for number in range(min(count, len(batches))):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(batches[number][0], training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum


def build_for(recipe: Recipe, size: int) -> keras.Model:
    """The recipe's network for ROIs of `size` pixels, with its starting weights."""
    model = build_network(recipe.network, recipe.head, input_size=size, dropout=recipe.dropout)
    if recipe.init.endswith(".npz"):
        _load(Path(recipe.init), model.weights)
    else:
        load_backbone_weights(model, recipe.init)
    return model


def compile_for(model: keras.Model, recipe: Recipe) -> None:
    """Compile `model` with the recipe's optimiser, loss and batch normalisation momentum."""
    if recipe.bn_momentum is not None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = recipe.bn_momentum
    if recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate)
    else:
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum)
    # XLA on a CPU makes these networks several times slower; JAX has nothing else.
    jit = "auto" if keras.backend.backend() == "jax" else False
    model.compile(optimizer, "binary_crossentropy", jit_compile=jit)
    optimizer.build(model.trainable_variables)


def _check(recipe: Recipe) -> None:
    if recipe.schedule not in SCHEDULES:
        raise RunError(f"there is no schedule {recipe.schedule!r}; known: {', '.join(SCHEDULES)}")
    if recipe.optimizer not in OPTIMIZERS:
        raise RunError(f"there is no optimizer {recipe.optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if recipe.augmentation not in ("fly", "copies", "none"):
        raise RunError(f"there is no augmentation {recipe.augmentation!r}; known: fly, copies, none")


def _epoch(
    model: keras.Model,
    recipe: Recipe,
    crops: Crops,
    split: Split,
    log: list[Epoch],
    workers: int,
    report: Report | None,
) -> Epoch:
    epoch = len(log)
    rate = _learning_rate(recipe, log)
    model.optimizer.learning_rate = rate
    batches = Batches(
        crops,
        split.train,
        recipe.batch,
        augmentation=recipe.augmentation,
        seed=recipe.seed,
        epoch=epoch,
        workers=workers,
    )
    watch = _Watch(epoch, len(batches), report)
    history = model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0, callbacks=[watch])
    loss = float(history.history["loss"][-1])
    _refuse_nan(loss, epoch)
    if recipe.bn_batches:
        measure_batch_norm(model, batches, recipe.bn_batches)
    probability = predict(model, crops, split.validation, recipe.batch)
    truth = crops.malignant[split.validation.samples]
    _refuse_nan(float(probability.sum()), epoch)
    return Epoch(
        epoch + 1,
        rate,
        loss,
        metrics.log_loss(probability, truth),
        metrics.accuracy(probability, truth),
        metrics.auc(probability, truth),
    )


def _learning_rate(recipe: Recipe, log: list[Epoch]) -> float:
    """The rate of the epoch after `log`."""
    if recipe.schedule == "cosine":
        if len(log) < recipe.warm_up:
            return recipe.learning_rate * (len(log) + 1) / (recipe.warm_up + 1)
        done = (len(log) - recipe.warm_up) / (recipe.epochs - recipe.warm_up)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    rate, best, waited = recipe.learning_rate, math.inf, 0
    for line in log:
        best, waited = (line.validation_loss, 0) if line.validation_loss < best else (best, waited + 1)
        if waited == _PATIENCE:
            rate, waited = rate * _FACTOR, 0
    return rate


def _finished(recipe: Recipe, log: list[Epoch]) -> bool:
    if len(log) >= recipe.epochs:
        return True
    if recipe.schedule != "plateau" or not log:
        return False
    losses = [line.validation_loss for line in log]
    return len(losses) - 1 - losses.index(min(losses)) >= _STOP


class _Watch(keras.callbacks.Callback):
    """Tells `report` of each step and stops at a loss that is not a number."""

    def __init__(self, epoch: int, steps: int, report: Report | None) -> None:
        super().__init__()
        self._epoch, self._steps, self._report = epoch, steps, report

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch % 10 == 9:  # reading the loss waits for the device
            _refuse_nan(float((logs or {}).get("loss", 0.0)), self._epoch)
        if self._report:
            self._report(f"epoch {self._epoch + 1}", batch + 1, self._steps)


def _refuse_nan(value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise RunError(
            f"the loss is not a number in epoch {epoch + 1}: lower the learning rate; the folder holds the epoch before"
        )


def check_same_run(folder: Path, recipe: Recipe, crops: Crops, split: Split) -> None:
    """Raises RunError where `folder` holds a run of another recipe, other crops or another split."""
    there = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    here = _made_of(recipe, crops, split)
    if any(_comparable(there)[key] != _comparable(here)[key] for key in ("recipe", "crops", "split")):
        raise RunError(f"{folder} holds a run of another recipe, data or split; name another folder or remove it")


def _claim(folder: Path, recipe: Recipe, crops: Crops, split: Split) -> Path | None:
    """Make the folder a run of this recipe and data; the state to go on from, or None for a new run."""
    if (folder / "run.json").exists():
        check_same_run(folder, recipe, crops, split)
    else:
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
                    "copies": part.copies.tolist() if split.how == "paper" else None,
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
    return {**run, "crops": crops}


def _distribute(devices: int) -> None:
    if devices <= 1:
        return
    if keras.backend.backend() != "jax":
        raise RunError("several devices need Keras' distribution, which works with KERAS_BACKEND=jax")
    found = keras.distribution.list_devices()
    if len(found) < devices:
        raise RunError(f"{devices} devices were asked for and {len(found)} found: {', '.join(found)}")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found[:devices]))


def _state(model: keras.Model) -> list[Any]:
    """Every variable that decides how training goes on: weights, dropout's generators, the optimiser's."""
    generators = [variable for variable in model.variables if "seed_generator" in variable.path]
    return [*model.weights, *generators, *model.optimizer.variables]


def _restore(model: keras.Model, state: Path) -> list[Epoch]:
    about = _load(state, _state(model))
    return [Epoch(**{**line, "epoch": int(line["epoch"])}) for line in about["log"]]


def _write_log(folder: Path, log: list[Epoch]) -> None:
    _write_csv(folder, log)
    line = log[-1]
    append_scalars(
        folder / "tensorboard", line.epoch, {key: value for key, value in asdict(line).items() if key != "epoch"}
    )


def _write_csv(folder: Path, log: list[Epoch]) -> None:
    with _renamed(folder / "log.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(log[0])))
        writer.writeheader()
        writer.writerows(asdict(line) for line in log)


def _save(path: Path, variables: list[Any], about: dict[str, Any]) -> None:
    arrays = {f"v{number}": variable.numpy() for number, variable in enumerate(variables)}
    with _renamed(path) as partial, partial.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def _load(path: Path, variables: list[Any]) -> dict[str, Any]:
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


def _write(path: Path, content: bytes) -> None:
    with _renamed(path) as partial:
        partial.write_bytes(content)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block ends: `path` is never half written."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
