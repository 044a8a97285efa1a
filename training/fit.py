"""Fit one network: epochs, averaged weights, checkpoints. Keras 3 alone; any backend.

Everything random in an epoch follows from the seed, the epoch and the sample, so an interrupted epoch is
simply run again. Keras' own callbacks (BackupAndRestore, CSVLogger, TensorBoard, ReduceLROnPlateau,
EarlyStopping) keep their counts in memory, and a killed run would not end with the same weights. Here
learning rate and end follow from the log alone.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from model.networks import build_network, load_backbone_weights
from training import metrics
from training.batches import Batches, measure_batch_norm, predict
from training.errors import RunError
from training.recipe import Recipe, check_recipe, is_finished, learning_rate
from training.roi_cache import Crops
from training.run_folder import (
    Epoch,
    check_same_run,
    claim,
    load_arrays,
    load_named,
    read_run,
    save_arrays,
    write_csv,
    write_log,
)
from training.split import Split

_EMA_BATCHES = 32  # on which batch normalisation is measured for averaged weights
Report = Callable[[str, int, int], None]  # the phase, steps done, steps in all
Build = Callable[["Recipe", int], keras.Model]  # a network for a recipe and the ROI's side


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
    """Train to the end of the recipe, resuming from `folder` if it holds a run of the same recipe and data.

    `report` is called at each step. `build` replaces the network of the recipe. `until` stops after that
    epoch; a later call resumes there. Returns the model with its final weights, and the log.

    Raises:
        RunError: the folder holds another run; the recipe and the split do not fit; the loss is not a number;
            several devices without a backend for them.
    """
    if (folder / "run.json").exists():
        check_same_run(folder, recipe, crops, split)
    check_recipe(recipe, split)
    start = claim(folder, recipe, crops, split)
    _distribute(recipe.devices)
    keras.mixed_precision.set_global_policy(recipe.precision)
    _make_deterministic(recipe.seed)
    # A resumed run has its own weights and needs no starting weights.
    model = (build or build_for)(recipe if start is None else replace(recipe, init="none"), crops.pixels.shape[1])
    compile_for(model, recipe)
    log = _restore(model, start) if start is not None else []
    if log:  # the CSV is an epoch ahead if a kill fell between the two
        write_csv(folder, log)
    while not is_finished(recipe, _losses(log)) and (until is None or len(log) < until):
        _epoch(model, recipe, crops, split, folder, log, workers=workers, report=report)
    if is_finished(recipe, _losses(log)) and not (folder / "final.npz").exists():
        # The weights of the last epoch, or of the best one; averaged if the recipe says so.
        load_arrays(folder / ("best.npz" if recipe.schedule == "plateau" else "last.npz"), model.weights)
        save_arrays(folder / "final.npz", model.weights, {"epochs": len(log)})
    elif is_finished(recipe, _losses(log)):
        load_arrays(folder / "final.npz", model.weights)
    return model, log


def load_run(folder: Path, build: Build | None = None) -> tuple[keras.Model, dict[str, Any]]:
    """Return the finished run in `folder`: its model with final weights, and the content of run.json.

    Raises:
        RunError: there is no run, or it did not finish.
    """
    run = read_run(folder)
    if not (folder / "final.npz").is_file():
        raise RunError(f"the run in {folder} did not finish; go on with `mammod-train fit` into the same folder")
    keras.mixed_precision.set_global_policy("float32")
    model = (build or build_for)(replace(Recipe(**run["recipe"]), init="none"), run["crops"]["policy"]["crop"]["size"])
    load_arrays(folder / "final.npz", model.weights)
    return model, run


def build_for(recipe: Recipe, size: int) -> keras.Model:
    """Return the recipe's network for ROIs of `size` pixels, with its starting weights."""
    model = build_network(recipe.network, recipe.head, input_size=size, dropout=recipe.dropout)
    if Path(recipe.init).name == "weights.npz":
        load_named(Path(recipe.init), model)
    elif recipe.init.endswith(".npz"):
        load_arrays(Path(recipe.init), model.weights)
    else:
        load_backbone_weights(model, recipe.init)
    return model


def compile_for(model: keras.Model, recipe: Recipe) -> None:
    """Compile `model` with the recipe's optimiser, loss and batch normalisation momentum."""
    if recipe.bn_momentum is not None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = recipe.bn_momentum
    ema: dict[str, Any] = {"use_ema": True, "ema_momentum": recipe.ema} if recipe.ema else {}
    if recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate, **ema)
    else:
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum, **ema)
    # XLA on a CPU makes these networks several times slower; JAX has no alternative.
    jit = "auto" if keras.backend.backend() == "jax" else False
    model.compile(optimizer, "binary_crossentropy", jit_compile=jit)
    optimizer.build(model.trainable_variables)


def _epoch(
    model: keras.Model,
    recipe: Recipe,
    crops: Crops,
    split: Split,
    folder: Path,
    log: list[Epoch],
    *,
    workers: int,
    report: Report | None,
) -> None:
    """Train one epoch, add its line to `log` and write weights and state."""
    epoch, rate = len(log), learning_rate(recipe, _losses(log))
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
    with _averaged_weights(model, recipe, batches):
        probability = predict(model, crops, split.validation, recipe.batch)
        truth = crops.malignant[split.validation.samples]
        _refuse_nan(float(probability.sum()), epoch)
        line = Epoch(
            epoch + 1,
            rate,
            loss,
            metrics.log_loss(probability, truth),
            metrics.accuracy(probability, truth),
            metrics.auc(probability, truth),
        )
        log.append(line)
        if all(line.validation_loss < past.validation_loss for past in log[:-1]):
            save_arrays(folder / "best.npz", model.weights, {"epoch": line.epoch})
        save_arrays(folder / "last.npz", model.weights, {"epoch": line.epoch})
    write_log(folder, log)
    save_arrays(folder / "state.npz", _state(model), {"log": [asdict(past) for past in log]})


@contextmanager
def _averaged_weights(model: keras.Model, recipe: Recipe, batches: Batches) -> Iterator[None]:
    """Give the model its averaged weights while the block runs, if the recipe has them."""
    if not recipe.ema:
        yield
        return
    own = [variable.numpy() for variable in model.weights]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    measure_batch_norm(model, batches, _EMA_BATCHES)
    yield
    for variable, value in zip(model.weights, own, strict=True):
        variable.assign(value)


def _losses(log: list[Epoch]) -> list[float]:
    return [line.validation_loss for line in log]


class _Watch(keras.callbacks.Callback):
    """Call `report` at each step and stop at a loss that is not a number."""

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


def _make_deterministic(seed: int) -> None:
    """Seed every generator, and have the backend add in a fixed order if it can."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        importlib.import_module("torch").use_deterministic_algorithms(True, warn_only=True)


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
    """Return every variable that training depends on: weights, dropout's generators, the optimiser's."""
    generators = [variable for variable in model.variables if "seed_generator" in variable.path]
    return [*model.weights, *generators, *model.optimizer.variables]


def _restore(model: keras.Model, state: Path) -> list[Epoch]:
    about = load_arrays(state, _state(model))
    return [Epoch(**{**line, "epoch": int(line["epoch"])}) for line in about["log"]]
