"""`mammod-train`: from data to crops, a trained network, its figures and a bundle."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from config.errors import MammodError
from training.console import console, counter, figure, progress_bars, show_counts, show_skipped, steps
from training.errors import DataError
from training.samples import Reading

if TYPE_CHECKING:
    from training.measured import LesionSet
    from training.recipe import Recipe
    from training.roi_cache import Crops

app = typer.Typer(
    help="Prepare data, train, evaluate and export mammod's networks. Research software.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
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


def main() -> None:
    """The console script: errors of ours end with one line and exit status 1."""
    # TensorFlow's start-up lines are no news to anybody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app()
    except MammodError as error:
        console.print(f"[red]mammod-train:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


@app.command()
def synthetic(
    folder: Annotated[Path, typer.Argument(help="Folder to write the tree and its four CSV files to.")],
    patients: Annotated[int, typer.Option(min=4)] = 24,
    seed: int = 0,
) -> None:
    """Write a small synthetic CBIS-DDSM in TCIA's layout, to try everything out."""
    from training.synthetic import write_synthetic

    write_synthetic(folder, patients, seed)
    console.print(f"wrote {patients} synthetic patients to {folder}")


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="What the data is: cbis, ddsm299, mias or table.")],
    data: Annotated[Path, typer.Argument(help="Folder of the data set, or the CSV file of a table.")],
    crops: Annotated[Path, typer.Argument(help="Folder to write the crops cache to.")],
    tables: Annotated[Path | None, typer.Option(help="cbis: folder of the four CSV files, if not DATA.")] = None,
    policy: Annotated[
        str, typer.Option(help="coarse-films, paper, or a JSON file with crop and normalisation.")
    ] = "paper",
    kind: Annotated[list[str] | None, typer.Option(help="Only lesions of this kind; may be given again.")] = None,
    workers: Workers = 1,
) -> None:
    """Read a data set, say what was skipped and why, and cut every lesion's ROI once."""
    from training import prepare as cutting
    from training.datasets import read_source

    if crops.exists():  # before the reading, which may take long
        raise DataError(f"{crops} exists already; remove it to prepare the crops again, or name another folder")
    crop, normalisation = cutting.read_policies(policy)
    with progress_bars() as progress:
        reading = read_source(source, data, tables or data, workers=workers, report=counter(progress, "reading"))
        if kind:
            reading = Reading(tuple(one for one in reading.samples if one.kind in kind), reading.skipped)
        made = cutting.prepare(
            reading, crops, crop, normalisation, workers=workers, report=counter(progress, "cutting")
        )
    show_skipped(made.skipped)
    show_counts(reading, source)
    console.print(f"{len(made)} crops in {crops}, {len(made.skipped)} rows skipped")


@app.command()
def fit(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run; one that was cut short goes on.")],
    network: str = "xception_c",
    head: str = "optimised",
    recipe: Annotated[str, typer.Option(help="default or paper; the options below override it.")] = "default",
    init: Annotated[
        str, typer.Option(help="imagenet (downloads), none, a weights file, or a finished run's final.npz.")
    ] = "imagenet",
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Epochs in which the rate rises, of a cosine.")] = None,
    schedule: Annotated[str | None, typer.Option(help="plateau or cosine.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="fly, copies or none.")] = None,
    precision: Precision = None,
    bn_momentum: float | None = None,
    bn_batches: int | None = None,
    seed: int | None = None,
    devices: Annotated[int | None, typer.Option(help="GPUs to train on together (KERAS_BACKEND=jax).")] = None,
    split: SplitKind = "patient",
    folds: Folds = 5,
    fold: Fold = 0,
    validation: Held = 0.2,
    workers: Workers = 2,
) -> None:
    """Train a network, or go on with a run that was cut short."""
    from training.fit import fit as train
    from training.roi_cache import open_cache

    given = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "optimizer": optimizer,
        "warm_up": warm_up,
        "schedule": schedule,
        "augmentation": augmentation,
        "precision": precision,
        "bn_momentum": bn_momentum,
        "bn_batches": bn_batches,
        "seed": seed,
        "devices": devices,
    }
    cache = open_cache(crops)
    chosen = replace(_recipe(recipe), network=network, head=head, init=init, **_set(given))
    sides = _split(cache, chosen, split, folds, fold, validation)
    with progress_bars() as progress:
        _, log = train(chosen, cache, sides, run, workers=workers, report=steps(progress))
    table = Table("epoch", "rate", "loss", "validation loss", "accuracy", "AUC")
    for line in log:
        table.add_row(
            str(line.epoch),
            f"{line.learning_rate:.2e}",
            f"{line.loss:.4f}",
            f"{line.validation_loss:.4f}",
            f"{line.validation_accuracy:.3f}",
            f"{line.validation_auc:.3f}",
        )
    console.print(table)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    crops: Annotated[Path, typer.Argument(help="The crops cache it was made from.")],
    out: Annotated[Path, typer.Argument(help="Folder for report.html, evaluation.json and predictions.json.")],
    external: External = None,
) -> None:
    """Measure a run on its held-out test part, and on other data."""
    from training.evaluate import evaluate_run
    from training.roi_cache import open_cache

    others = _external(external)
    result = evaluate_run(run, open_cache(crops), out, external=others)
    table = Table("set", "lesions", "AUC", "accuracy", "sensitivity at 90 % specificity")
    for measured in result["sets"]:
        cells = [figure(measured[key]) for key in ("auc", "accuracy", "sensitivity_at_90_specificity")]
        table.add_row(measured["name"], str(measured["lesions"]), *cells)
    console.print(table)
    for remark in result["remarks"]:
        console.print(f"[yellow]{remark}[/yellow]", highlight=False)
    console.print(f"report: {out / 'report.html'}")


@app.command()
def reproduce(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs in it are kept.")],
    weights: Weights = "imagenet",
    recipe: Annotated[str, typer.Option(help="default or paper.")] = "paper",
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
    """Train and measure the paper's grid and set its tables and figures beside ours; resumable."""
    from model.networks import HEADS, NAMES
    from training.paper_grid import grid
    from training.paper_grid import reproduce as run_grid
    from training.roi_cache import open_cache

    cache = open_cache(crops)
    chosen = replace(_recipe(recipe), **_set({"epochs": epochs, "batch": batch, "precision": precision, "seed": seed}))
    sides = _split(cache, chosen, split, folds, fold, validation)
    if sides.how == "patient" and chosen.augmentation == "copies":
        chosen = replace(chosen, augmentation="fly")  # the copies are made by the paper's split
    cells = grid(network or NAMES, head or HEADS)
    with progress_bars() as progress:
        summary = run_grid(
            cells,
            chosen,
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


@app.command()
def crossvalidate(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs in it are kept.")],
    weights: Weights = "imagenet",
    start: Annotated[
        Path | None, typer.Option(help="Folder of an earlier cross-validation to go on from, at another ROI size, say.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="default or paper.")] = "default",
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
    from training.crossvalidate import REPORT, show
    from training.crossvalidate import crossvalidate as run_folds
    from training.paper_grid import Cell
    from training.roi_cache import open_cache

    given = {"epochs": epochs, "batch": batch, "learning_rate": learning_rate, "precision": precision, "seed": seed}
    chosen = replace(_recipe(recipe), **_set(given))
    if chosen.augmentation == "copies":
        chosen = replace(chosen, augmentation="fly")  # the copies are made by the paper's split
    others = _external(external)
    cells = [Cell(name, top) for name in network or ("xception_c",) for top in head or ("optimised",)]
    with progress_bars() as progress:
        result = run_folds(
            cells,
            chosen,
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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    evaluation: Annotated[Path, typer.Argument(help="The folder evaluate wrote.")],
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle to make.")],
    name: Annotated[str, typer.Option(help="The bundle's name.")],
    version: Annotated[str, typer.Option(help="The bundle's version.")],
    data: Annotated[str, typer.Option(help="In words, what it was trained on.")],
    licence: Annotated[str, typer.Option(help="What the weights may be used for.")] = "research only",
    limit: Annotated[list[str] | None, typer.Option(help="What a user must know; may be given again.")] = None,
    crossvalidation: Annotated[
        Path | None, typer.Option(help="Folder crossvalidate wrote, whose figures go onto the card too.")
    ] = None,
) -> None:
    """Save a run as a bundle with what was measured, and show its card."""
    from model.bundle import card
    from training.export import export_run

    made = export_run(
        run,
        evaluation,
        bundle,
        name=name,
        version=version,
        data=data,
        licence=licence,
        limits=limit or (),
        crossvalidation=crossvalidation,
    )
    typer.echo(card(made))


def _recipe(name: str) -> Recipe:
    from training.recipe import RECIPES

    if name not in RECIPES:
        raise DataError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def _external(given: list[str] | None) -> list[LesionSet]:
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


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _split(cache: Crops, recipe: Recipe, how: str, folds: int, fold: int, validation: float) -> Any:
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
    )
    if len(sides.left_out):
        console.print(f"{len(sides.left_out)} training lesions left out: their patients are in the test part too")
    return sides


if __name__ == "__main__":
    main()
