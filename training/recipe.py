"""Define how a network is trained: recipes, each epoch's learning rate, the end of a run. No framework."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.errors import RunError
from training.split import Split

SCHEDULES = ("plateau", "cosine")
OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("fly", "stable", "copies", "none")
# The subgroups of the eight orientations that a network's answer may be averaged over, by their size.
ORIENTATIONS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: tuple(range(8))}
_PATIENCE, _STOP, _FACTOR = 7, 13, 0.2


@dataclass(frozen=True)
class Recipe:
    """Specify how a network is trained; the defaults are this project's.

    `PAPER` is the paper's recipe, `STABLE` the default bundle's. `optimizer` is "sgd" with `momentum`, or
    "adam" (without it). `schedule` "cosine" falls from `learning_rate` to 0 over `epochs` and ends with the
    last weights; in its first `warm_up` epochs the rate rises in equal steps. "plateau" multiplies by 0.2
    after 7 epochs without a lower validation loss, stops after 13 and ends with the weights of the lowest
    loss. `augmentation` is "fly" (random each epoch), "stable" (the same, and every change a scanner makes:
    see `training.augment.STABLE`), "copies" (the split's offline copies) or "none". `ema` over 0 is the
    momentum, per step, of averaged weights, which validate and end the run; batch normalisation is then
    measured again for them. `orientations` is the number of orientations a prediction is averaged over: 1, 2,
    4 or 8. `precision` is a Keras dtype policy. `init` is as for `load_backbone_weights`, or a finished run's
    `final.npz` or a bundle's `weights.npz`; training then starts from all of its weights (at another ROI
    size, say). `bn_momentum` replaces batch normalisation's 0.99 of the moving averages, which lags on few
    steps; with `bn_batches` they are measured again on that many training batches after each epoch. `devices`
    over 1 trains data-parallel through Keras' distribution.
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
    ema: float = 0.0
    orientations: int = 1
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
STABLE = Recipe(head="plain", augmentation="stable", ema=0.99, orientations=4)
RECIPES = {"default": Recipe(), "paper": PAPER, "stable": STABLE}


def check_recipe(recipe: Recipe, split: Split) -> None:
    """Refuse a recipe that names unknown options, or that does not fit the split.

    Raises:
        RunError: see above.
    """
    for value, known, what in (
        (recipe.schedule, SCHEDULES, "schedule"),
        (recipe.optimizer, OPTIMIZERS, "optimizer"),
        (recipe.augmentation, AUGMENTATIONS, "augmentation"),
        (recipe.orientations, tuple(ORIENTATIONS), "number of orientations"),
    ):
        if value not in known:
            raise RunError(f"there is no {what} {value!r}; known: {', '.join(map(str, known))}")
    has_copies = bool((split.train.copies >= 0).any())
    if has_copies != (recipe.augmentation == "copies"):
        made = "holds the paper's copies" if has_copies else "holds no copies"
        raise RunError(
            f"the split {made} and the recipe's augmentation is {recipe.augmentation!r}: copies go with 'copies' alone"
        )


def learning_rate(recipe: Recipe, losses: Sequence[float]) -> float:
    """Return the learning rate of the next epoch, given the validation losses of the epochs before it."""
    if recipe.schedule == "cosine":
        if len(losses) < recipe.warm_up:
            return recipe.learning_rate * (len(losses) + 1) / (recipe.warm_up + 1)
        done = (len(losses) - recipe.warm_up) / (recipe.epochs - recipe.warm_up)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    rate, best, waited = recipe.learning_rate, math.inf, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == _PATIENCE:
            rate, waited = rate * _FACTOR, 0
    return rate


def is_finished(recipe: Recipe, losses: Sequence[float]) -> bool:
    """Return whether a run with these validation losses has ended."""
    if len(losses) >= recipe.epochs:
        return True
    if recipe.schedule != "plateau" or not losses:
        return False
    return len(losses) - 1 - list(losses).index(min(losses)) >= _STOP
