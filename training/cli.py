"""`mammod-train`: from data to crops, a trained network, its figures and a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from config.errors import MammodError
from training.errors import DataError
from training.samples import Reading, counts

if TYPE_CHECKING:
    from training.cache import Crops
    from training.fit import Recipe, Report

app = typer.Typer(
    help="Prepare data, train, evaluate and export mammod's networks. Research software.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

SOURCES = ("cbis", "ddsm299", "mias", "table")
POLICIES = ("coarse-films", "paper")
Workers = Annotated[int, typer.Option(help="Processes that cut crops, or threads that augment them.", min=1)]
Folds = Annotated[int, typer.Option(help="Folds of patients, where the data has no test part of its own.", min=2)]
Fold = Annotated[int, typer.Option(help="The fold that is the test part, from 0.", min=0)]
SplitKind = Annotated[str, typer.Option("--split", help="patient, or paper (copies of a lesion on both sides).")]
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
    source: Annotated[str, typer.Argument(help=f"What the data is: {', '.join(SOURCES)}.")],
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

    if crops.exists():  # before the reading, which may take long
        raise DataError(f"{crops} exists already; remove it to prepare the crops again, or name another folder")
    crop, normalisation = _policies(policy)
    with _progress() as progress:
        reading = _read(source, data, tables or data, workers, _counter(progress, "reading"))
        if kind:
            reading = Reading(tuple(one for one in reading.samples if one.kind in kind), reading.skipped)
        made = cutting.prepare(
            reading, crops, crop, normalisation, workers=workers, report=_counter(progress, "cutting")
        )
    _show_skipped(made.skipped)
    _show_counts(reading, source)
    console.print(f"{len(made)} crops in {crops}, {len(made.skipped)} rows skipped")


@app.command()
def fit(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run; one that was cut short goes on.")],
    network: str = "xception_c",
    head: str = "optimised",
    recipe: Annotated[str, typer.Option(help="default or paper; the options below override it.")] = "default",
    init: Annotated[str, typer.Option(help="imagenet (downloads), none, or a weights file.")] = "imagenet",
    epochs: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    schedule: Annotated[str | None, typer.Option(help="plateau or cosine.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="fly, copies or none.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or mixed_bfloat16.")] = None,
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
    from training.cache import open_cache
    from training.fit import fit as train

    given = {
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "momentum": momentum,
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
    with _progress() as progress:
        _, log = train(chosen, cache, sides, run, workers=workers, report=_steps(progress))
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
    external: Annotated[
        list[str] | None, typer.Option(help="NAME=CROPS of another test set; may be given again.")
    ] = None,
) -> None:
    """Measure a run on its held-out test part, and on other data."""
    from training.cache import open_cache
    from training.evaluate import LesionSet, evaluate_run
    from training.fit import part_of

    sets = []
    for one in external or ():
        name, equals, folder = one.partition("=")
        if not equals:
            raise DataError(f"--external {one!r}: NAME=CROPS was expected")
        cache = open_cache(Path(folder))
        sets.append(LesionSet(name, cache, part_of(cache)))
    result = evaluate_run(run, open_cache(crops), out, external=sets)
    table = Table("set", "lesions", "AUC", "accuracy", "sensitivity at 90 % specificity")
    for measured in result["sets"]:
        cells = [_figure(measured[key]) for key in ("auc", "accuracy", "sensitivity_at_90_specificity")]
        table.add_row(measured["name"], str(measured["lesions"]), *cells)
    console.print(table)
    for remark in result["remarks"]:
        console.print(f"[yellow]{remark}[/yellow]", highlight=False)
    console.print(f"report: {out / 'report.html'}")


@app.command()
def reproduce(
    crops: Annotated[Path, typer.Argument(help="A crops cache made by prepare.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs in it are kept.")],
    weights: Annotated[str, typer.Option(help="imagenet, none, or a folder of weights files.")] = "imagenet",
    recipe: Annotated[str, typer.Option(help="default or paper.")] = "paper",
    network: Annotated[list[str] | None, typer.Option(help="Only this network; may be given again.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Only this head; may be given again.")] = None,
    epochs: int | None = None,
    batch: int | None = None,
    precision: Annotated[str | None, typer.Option(help="float32 or mixed_bfloat16.")] = None,
    seed: int | None = None,
    split: SplitKind = "patient",
    folds: Folds = 5,
    fold: Fold = 0,
    validation: Held = 0.2,
    workers: Workers = 2,
) -> None:
    """Train and measure the paper's grid and set its tables and figures beside ours; resumable."""
    from model.networks import HEADS, NAMES
    from training.cache import open_cache
    from training.reproduce import grid
    from training.reproduce import reproduce as run_grid

    cache = open_cache(crops)
    chosen = replace(_recipe(recipe), **_set({"epochs": epochs, "batch": batch, "precision": precision, "seed": seed}))
    sides = _split(cache, chosen, split, folds, fold, validation)
    if sides.how == "patient" and chosen.augmentation == "copies":
        chosen = replace(chosen, augmentation="fly")  # the copies are made by the paper's split
    cells = grid(network or NAMES, head or HEADS)
    with _progress() as progress:
        summary = run_grid(
            cells,
            chosen,
            weights,
            cache,
            sides,
            out,
            workers=workers,
            report=lambda cell: _steps(progress, f"{cell.name}, "),
        )
    for remark in summary["remarks"]:
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
) -> None:
    """Save a run as a bundle with what was measured, and show its card."""
    from model.bundle import card
    from training.export import export_run

    made = export_run(
        run, evaluation, bundle, name=name, version=version, data=data, licence=licence, limits=limit or ()
    )
    typer.echo(card(made))


def _read(source: str, data: Path, tables: Path, workers: int, report: Callable[[int, int], None]) -> Reading:
    if source == "cbis":
        from training.cbis import read_cbis

        return read_cbis(data, tables, workers=workers, report=report)
    if source == "ddsm299":
        from training.ddsm299 import read_ddsm299

        return read_ddsm299(data)
    if source == "mias":
        from training.mias import read_mias

        return read_mias(data)
    if source == "table":
        from training.table import read_table

        return read_table(data)
    raise DataError(f"there is no source {source!r}; known: {', '.join(SOURCES)}")


def _policies(policy: str) -> tuple[Any, Any]:
    import json

    from pydantic import ValidationError

    from model.crop import CropPolicy
    from model.normalise import NormalisationPolicy
    from training.prepare import COARSE_FILMS, PAPER

    if policy in POLICIES:
        return {"coarse-films": COARSE_FILMS, "paper": PAPER}[policy], NormalisationPolicy()
    try:
        given = json.loads(Path(policy).read_text(encoding="utf-8"))
        return CropPolicy(**given["crop"]), NormalisationPolicy(**given.get("normalisation", {}))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"policy {policy!r} is neither {', '.join(POLICIES)} nor a JSON file of policies: {error}"
        ) from error


def _recipe(name: str) -> Recipe:
    from training.fit import PAPER, Recipe

    if name not in ("default", "paper"):
        raise DataError(f"there is no recipe {name!r}; known: default, paper")
    return PAPER if name == "paper" else Recipe()


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


def _show_skipped(skipped: tuple[dict[str, str], ...]) -> None:
    if skipped:
        table = Table("skipped", "reason")
        for row in skipped:
            table.add_row(row["where"], row["reason"])
        console.print(table)


def _show_counts(reading: Reading, source: str) -> None:
    table = Table("lesions", "here")
    for name, count in counts(reading.samples).items():
        table.add_row(name, str(count))
    console.print(table)
    if source == "cbis":
        from training.cbis import set_beside_paper

        table = Table("side and label", "here", "paper")
        for name, here, paper in set_beside_paper(reading.samples):
            table.add_row(name, str(here), str(paper))
        console.print(table)


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _counter(progress: Progress, what: str) -> Callable[[int, int], None]:
    tasks: list[Any] = []

    def report(done: int, of: int) -> None:
        if not tasks:
            tasks.append(progress.add_task(what, total=of))
        progress.update(tasks[0], completed=done)

    return report


def _steps(progress: Progress, prefix: str = "") -> Report:
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(prefix + what, total=of)
        progress.update(tasks[what], completed=done)

    return report


if __name__ == "__main__":
    main()
