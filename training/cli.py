"""Provide `mammod-train`: from data to crops, a trained network, its figures and a bundle."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from config.errors import MammodError
from training.cli_options import (
    External,
    Fold,
    Folds,
    Held,
    Precision,
    SplitKind,
    Workers,
    external_sets,
    given_only,
    recipe_called,
    sides_of,
    start_backend,
)
from training.cli_series import crossvalidate, reproduce
from training.console import console, counter, figure, progress_bars, show_boxes, show_counts, show_skipped, steps
from training.errors import DataError
from training.samples import Reading

app = typer.Typer(
    help="Prepare data, train, evaluate and export mammod's networks. Research software.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(reproduce)
app.command()(crossvalidate)


def main() -> None:
    """Run the console script; errors of this project end with one line and exit status 1."""
    # TensorFlow's start-up lines tell the user nothing.
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
    source: Annotated[str, typer.Argument(help="What the data is: cbis, squeezed, mias or table.")],
    data: Annotated[Path, typer.Argument(help="Folder of the data set, or the CSV file of a table.")],
    crops: Annotated[Path, typer.Argument(help="Folder to write the crops cache to.")],
    tables: Annotated[
        Path | None, typer.Option(help="cbis, squeezed: folder of the four CSV files, if not DATA.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="films, coarse-films, paper, or a JSON file with crop and normalisation.")
    ] = "paper",
    kind: Annotated[list[str] | None, typer.Option(help="Only lesions of this kind; may be given again.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="cbis: a CSV of its boxes to hold the masks against.")] = None,
    wide: Annotated[bool, typer.Option(help="Keep a wide crop of each lesion too, for the recipe stable.")] = False,
    workers: Workers = 1,
) -> None:
    """Read a data set, list skipped rows with their reasons, and cut every lesion's ROI once."""
    from training import prepare as cutting
    from training.box_check import check_boxes
    from training.datasets import read_source

    if crops.exists():  # before the reading, which may take long
        raise DataError(f"{crops} exists already; remove it to prepare the crops again, or name another folder")
    crop, normalisation = cutting.read_policies(policy)
    with progress_bars() as progress:
        reading = read_source(
            source,
            data,
            tables or data,
            workers=workers,
            report=counter(progress, "reading"),
            outlines=crops.parent / "outlines.jsonl",
        )
        if kind:
            reading = Reading(tuple(one for one in reading.samples if one.kind in kind), reading.skipped)
        made = cutting.prepare(
            reading, crops, crop, normalisation, workers=workers, wide=wide, report=counter(progress, "cutting")
        )
    show_skipped(made.skipped)
    if boxes is not None:
        show_boxes(check_boxes(reading.samples, boxes))
    show_counts(reading, source)
    console.print(f"{len(made)} crops in {crops}, {len(made.skipped)} rows skipped")


@app.command()
def fit(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run; one that was cut short goes on.")],
    network: str = "xception_c",
    head: str | None = None,
    recipe: Annotated[str, typer.Option(help="default, paper or stable; the options below override it.")] = "default",
    init: Annotated[
        str,
        typer.Option(
            help="imagenet (downloads), none, a weights file, a finished run's final.npz, or a bundle's weights.npz."
        ),
    ] = "imagenet",
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Epochs in which the rate rises, of a cosine.")] = None,
    schedule: Annotated[str | None, typer.Option(help="plateau or cosine.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="fly, stable, copies or none.")] = None,
    ema: Annotated[float | None, typer.Option(help="Momentum per step of averaged weights; 0 for none.")] = None,
    orientations: Annotated[int | None, typer.Option(help="Averaged in a prediction: 1, 2, 4 or 8.")] = None,
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
    """Train a network, or resume an interrupted run."""
    start_backend()
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
        "ema": ema,
        "orientations": orientations,
        "head": head,
        "precision": precision,
        "bn_momentum": bn_momentum,
        "bn_batches": bn_batches,
        "seed": seed,
        "devices": devices,
    }
    cache = open_cache(crops)
    settings = replace(recipe_called(recipe), network=network, init=init, **given_only(given))
    sides = sides_of(cache, settings, split, folds=folds, fold=fold, validation=validation)
    with progress_bars() as progress:
        _, log = train(settings, cache, sides, run, workers=workers, report=steps(progress))
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
    robust: Annotated[
        bool, typer.Option(help="Measure what turns, grain, blur and gamma do, on the validation part.")
    ] = False,
) -> None:
    """Measure a run on its held-out test part, and on other data."""
    from training.evaluate import evaluate_run
    from training.roi_cache import open_cache

    others = external_sets(external)
    result = evaluate_run(run, open_cache(crops), out, external=others, robust=robust)
    table = Table("set", "lesions", "AUC", "accuracy", "sensitivity at 90 % specificity")
    for measured in result["sets"]:
        cells = [figure(measured[key]) for key in ("auc", "accuracy", "sensitivity_at_90_specificity")]
        table.add_row(measured["name"], str(measured["lesions"]), *cells)
    console.print(table)
    for remark in result["remarks"]:
        console.print(f"[yellow]{remark}[/yellow]", highlight=False)
    console.print(f"report: {out / 'report.html'}")


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
    """Save a run as a bundle with its measured figures, and show its card."""
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


if __name__ == "__main__":
    main()
