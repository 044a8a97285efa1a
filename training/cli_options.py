"""Define options and arguments that several commands of `mammod-train` share, and parse their values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.engines.hardware import gpus
from model.engines.onednn import choose_onednn
from training.console import console
from training.errors import DataError

if TYPE_CHECKING:
    from training.measured import LesionSet
    from training.recipe import Recipe
    from training.roi_cache import Crops

Workers = Annotated[int, typer.Option(help="Processes that cut crops, or threads that augment them.", min=1)]
Folds = Annotated[int, typer.Option(help="Folds of patients, where the data has no test part of its own.", min=2)]
Fold = Annotated[int, typer.Option(help="The fold that is the test part, from 0.", min=0)]
SplitKind = Annotated[
    str, typer.Option("--split", help="patient, paper (copies of a lesion on both sides), or all (no test part).")
]
External = Annotated[list[str] | None, typer.Option(help="NAME=CROPS of another test set; may be given again.")]
Networks = Annotated[list[str] | None, typer.Option("--network", help="Only this network; may be given again.")]
Heads = Annotated[list[str] | None, typer.Option("--head", help="Only this head; may be given again.")]
Weights = Annotated[str, typer.Option(help="imagenet, none, or a folder of weights files.")]
Precision = Annotated[str | None, typer.Option(help="float32 or mixed_bfloat16.")]
Held = Annotated[
    float, typer.Option(help="Validation part, as a share of the patients that are not tested.", min=0.05, max=0.5)
]


def start_backend() -> None:
    """Choose TensorFlow's kernels by a trial before it is loaded, and print the choice."""
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow" and not gpus():
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        console.print(choose_onednn(caches / "mammod" / "engine"), highlight=False)


def recipe_called(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        DataError: there is no recipe of that name.
    """
    from training.recipe import RECIPES

    if name not in RECIPES:
        raise DataError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def external_sets(given: list[str] | None) -> list[LesionSet]:
    """Return the test sets that NAME=CROPS options name.

    Raises:
        DataError: an option has another form, or names no cache.
    """
    from training.batches import part_of
    from training.measured import LesionSet
    from training.roi_cache import open_cache

    sets = []
    for one in given or ():
        name, equals, folder = one.partition("=")
        if not equals:
            raise DataError(f"--external {one!r}: NAME=CROPS was expected")
        cache = open_cache(Path(folder))
        sets.append(LesionSet(name, cache, part_of(cache)))
    return sets


def given_only(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in given.items() if value is not None}


def sides_of(cache: Crops, recipe: Recipe, how: str, *, folds: int, fold: int, validation: float) -> Any:
    """Return the split of a cache, with the paper's copies if the recipe trains on them."""
    from training.split import split_samples

    sides = split_samples(
        cache.patients.tolist(),
        cache.malignant.tolist(),
        cache.groups,
        how=how,
        folds=folds,
        fold=fold,
        validation=validation,
        seed=recipe.seed,
        copies=recipe.augmentation == "copies",
    )
    if len(sides.left_out):
        console.print(f"{len(sides.left_out)} training lesions left out: their patients are in the test part too")
    return sides
