"""Provide the commands that train many networks: the paper's grid, cross-validation. Both are resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from training.cli_options import (
    External,
    Fold,
    Folds,
    Heads,
    Held,
    Networks,
    Precision,
    SplitKind,
    Weights,
    Workers,
    external_sets,
    given_only,
    recipe_called,
    sides_of,
    start_backend,
)
from training.console import console, progress_bars, steps


def reproduce(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs in it are kept.")],
    weights: Weights = "imagenet",
    recipe: Annotated[str, typer.Option(help="default, paper or stable.")] = "paper",
    network: Networks = None,
    head: Heads = None,
    epochs: int | None = None,
    batch: int | None = None,
    precision: Precision = None,
    seed: int | None = None,
    split: SplitKind = "patient",
    folds: Folds = 5,
    fold: Fold = 0,
    validation: Held = 0.2,
    workers: Workers = 2,
) -> None:
    """Train and measure the paper's grid and compare its tables and figures with ours; resumable."""
    start_backend()
    from model.networks import HEADS, NAMES
    from training.paper_grid import grid
    from training.paper_grid import reproduce as run_grid
    from training.roi_cache import open_cache

    cache = open_cache(crops)
    settings = replace(
        recipe_called(recipe), **given_only({"epochs": epochs, "batch": batch, "precision": precision, "seed": seed})
    )
    sides = sides_of(cache, settings, split, folds=folds, fold=fold, validation=validation)
    cells = grid(network or NAMES, head or HEADS)
    with progress_bars() as progress:
        summary = run_grid(
            cells,
            settings,
            weights,
            cache,
            sides,
            out,
            workers=workers,
            report=lambda cell: steps(progress, f"{cell.name}, "),
        )
    for remark in summary["remarks"]:
        console.print(f"[yellow]{remark}[/yellow]", highlight=False)
    console.print(f"report: {out / 'report.html'}")


def crossvalidate(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs in it are kept.")],
    weights: Weights = "imagenet",
    start: Annotated[
        Path | None, typer.Option(help="Folder of an earlier cross-validation to go on from, at another ROI size, say.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="default, paper or stable.")] = "default",
    network: Networks = None,
    head: Heads = None,
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    precision: Precision = None,
    seed: int | None = None,
    folds: Folds = 5,
    validation: Held = 0.2,
    external: External = None,
    workers: Workers = 2,
) -> None:
    """Measure networks by cross-validation over patients, and compare them in pairs; resumable."""
    start_backend()
    from training.crossvalidate import REPORT, show
    from training.crossvalidate import crossvalidate as run_folds
    from training.paper_grid import Cell
    from training.roi_cache import open_cache

    given = {"epochs": epochs, "batch": batch, "learning_rate": learning_rate, "precision": precision, "seed": seed}
    settings = replace(recipe_called(recipe), **given_only(given))
    others = external_sets(external)
    cells = [Cell(name, top) for name in network or ("xception_c",) for top in head or ("optimised",)]
    with progress_bars() as progress:
        result = run_folds(
            cells,
            settings,
            weights,
            open_cache(crops),
            out,
            folds=folds,
            validation=validation,
            start=start,
            external=others,
            workers=workers,
            report=lambda cell, fold: steps(progress, f"{cell.name}, fold {fold}, "),
        )
    for name, lesions, auc, accuracy in show(result):
        console.print(f"{name}: {lesions} lesions, AUC {auc}, accuracy at 0.5 {accuracy}", highlight=False)
    for remark in result["remarks"]:
        console.print(f"[yellow]{remark}[/yellow]", highlight=False)
    console.print(f"report: {out / REPORT}")
