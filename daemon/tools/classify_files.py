"""`mammod classify`: run the service's pipeline on files, without network, spool or ledger."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import track
from rich.table import Table

from config.errors import ConfigurationError, MammodError
from config.settings import Settings
from daemon.dicom.equipment import is_own_report
from daemon.errors import LesionError, ReportError
from daemon.jobs.job_runner import read_part10
from daemon.jobs.pipeline import Classified, MissingInstances, Pipeline, read_inputs
from daemon.jobs.worker_pools import make_pools
from daemon.lesions.reader import lesion_references
from daemon.monitoring.status_report import RESEARCH_USE
from daemon.reports.case import Result
from daemon.reports.rendering import pictures
from daemon.workers.bundle_source import engine_cache, open_bundle
from model.bundle import Bundle

_PIPE_WIDTH = 160  # columns of the table if standard output is no terminal


@dataclass
class Files:
    """The files given: each instance by its SOP Instance UID, and the lesion objects among them.

    `refused` holds files the user named that cannot be used, with the reason; `skipped` counts files in
    folders that are not DICOM, or are reports of mammod.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    skipped: int = 0


@dataclass
class FileOutcome:
    """The result for one lesion object; `problems` say what failed, without naming the object."""

    source: Path
    classified: Classified | None = None
    reports: list[dict[str, str]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def classify_files(
    given: Sequence[Path],
    output: Path,
    *,
    settings: Settings,
    kinds: Sequence[str],
    allow_untrained: bool,
    as_json: bool,
) -> int:
    """Classify the lesions marked in the given files and folders; write reports and pictures to `output`.

    A table, or with `as_json` one JSON object, goes to standard output, everything else to standard error.
    Returns 0 if every named file was read and every lesion object got all its pictures and reports of
    `kinds`, else 1.

    Raises:
        ConfigurationError: the output folder cannot be written.
        BundleError, ClassifierError: there is nothing to classify with.
    """
    console = Console(stderr=True, markup=False)
    files = sort_files(_progress(console, "reading", list(_all_files(given))))
    for path, reason in files.refused.items():
        console.print(f"{path}: {reason}", style="red", soft_wrap=True, highlight=False)
    if files.skipped:
        console.print(f"{files.skipped} files skipped: not DICOM, or reports of mammod", highlight=False)
    if not files.sources:
        console.print(
            f"None of these {len(files.paths)} objects marks a lesion; add the SEG, or the SR with regions on images",
            style="red",
            soft_wrap=True,
            highlight=False,
        )
        return 1
    with _output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    bundle = open_bundle(settings, allow_untrained, made_at=output / "untrained-bundle")
    outcomes = _classify_all(files, output=output, settings=settings, kinds=kinds, bundle=bundle, console=console)
    for outcome in outcomes:
        for problem in outcome.problems:
            console.print(f"{outcome.source}: {problem}", style="red", soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps(_as_json(outcomes, files, bundle), indent=2))
    else:
        _print_table(outcomes, files, bundle)
        console.print(f"reports and pictures: {output}", soft_wrap=True, highlight=False)
    return 1 if files.refused or any(outcome.problems for outcome in outcomes) else 0


def _all_files(given: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield every file, those of a folder sorted by name, and whether the user named it."""
    for path in given:
        if path.is_dir():
            yield from ((file, False) for file in sorted(path.rglob("*")) if file.is_file())
        else:
            yield path, True


def sort_files(files: Iterable[tuple[Path, bool]]) -> Files:
    """Read the header of every file; each comes with whether the user named it or a folder above it."""
    found = Files()
    for path, named in files:
        try:
            header = dcmread(path, stop_before_pixels=True)
            uid = str(header.SOPInstanceUID)
        except (InvalidDicomError, AttributeError):
            _skip(found, path, named, "not a DICOM file; DICOM Part 10 files are expected")
            continue
        except OSError as error:
            _skip(found, path, True, f"cannot be read: {error.strerror or type(error).__name__}")
            continue
        except Exception as error:  # pydicom raises many kinds on damaged files
            _skip(found, path, True, f"this DICOM file is damaged ({type(error).__name__}); copy it again")
            continue
        if is_own_report(header):
            _skip(found, path, named, "a report of mammod, which marks nothing new")
            continue
        found.paths[uid] = path
        try:
            if lesion_references(header) is not None:
                found.sources[uid] = path
        except LesionError:
            found.sources[uid] = path  # the reason is reported when it is classified
    return found


def _skip(found: Files, path: Path, report: bool, reason: str) -> None:
    if report:
        found.refused[path] = reason
    else:
        found.skipped += 1


def _classify_all(
    files: Files, *, output: Path, settings: Settings, kinds: Sequence[str], bundle: Bundle, console: Console
) -> list[FileOutcome]:
    """Classify each lesion object, in the order of the files."""
    cores = os.cpu_count() or 1
    pools = make_pools(bundle, settings, decoders=min(len(files.paths), cores), cache=engine_cache(settings))
    stems = _stems(files.sources.values())
    try:
        with console.status("warming up the classifier"):
            pools.start()

        def classify(source: Path) -> FileOutcome:
            return _classify_object(
                source,
                stems[source],
                files=files,
                output=output,
                settings=settings,
                kinds=kinds,
                pipeline=pools.pipeline,
            )

        # Enough at once to keep the decoders busy; each lesion object waits for its own results.
        with ThreadPoolExecutor(cores) as threads:
            outcomes = threads.map(classify, files.sources.values())
            return list(_progress(console, "classifying", outcomes, len(files.sources)))
    finally:
        pools.stop()


def _classify_object(
    source: Path,
    stem: str,
    *,
    files: Files,
    output: Path,
    settings: Settings,
    kinds: Sequence[str],
    pipeline: Pipeline,
) -> FileOutcome:
    outcome = FileOutcome(source)
    try:
        inputs = read_inputs(source, files.paths.get)
        classified = outcome.classified = pipeline.classify(inputs, settings.lesions, pictures=True)
        if not classified.results:
            return outcome
        made = pipeline.write(inputs, classified, kinds, lambda _: ())
        outcome.problems += [f"no report of kind {kind}: {reason}" for kind, reason in made.refused.items()]
        for item in made.written:
            name = _new_name([report["file"] for report in outcome.reports], f"{stem}-{item.kind}", ".dcm")
            with _output_errors(output):
                (output / name).write_bytes(read_part10(item.report))
            outcome.reports.append({"kind": item.kind, "file": name, "sop_instance_uid": item.sop_instance_uid})
        for picture in pictures(pipeline.case(inputs, classified)):
            image = files.paths[str(picture.image.SOPInstanceUID)]
            name = _new_name(outcome.pictures, f"{stem}-on-{image.stem}", ".png")
            with _output_errors(output):
                Image.fromarray(picture.pixels).save(output / name)
            outcome.pictures.append(name)
    except ConfigurationError:
        raise  # the output folder cannot be written: every other object would fail too
    except MissingInstances as error:
        outcome.problems.append(f"not classified: it marks lesions on images that are missing: {', '.join(error.uids)}")
    except ReportError as error:
        outcome.problems.append(str(error))
    except MammodError as error:
        outcome.problems.append(f"not classified: {error}")
    except Exception as error:  # unforeseen damage costs this object only
        outcome.problems.append(f"not classified: it cannot be read ({type(error).__name__}); is the file complete?")
    return outcome


def _stems(sources: Iterable[Path]) -> dict[Path, str]:
    """Return the stem of each lesion object's output files: its file name, numbered if taken."""
    stems: dict[Path, str] = {}
    for source in sources:
        stems[source] = _new_name(stems.values(), source.stem, "")
    return stems


def _new_name(given: Iterable[str], stem: str, suffix: str) -> str:
    number, name = 1, f"{stem}{suffix}"
    while name in given:
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


@contextmanager
def _output_errors(output: Path) -> Iterator[None]:
    """Turn an OSError of the block into a ConfigurationError about `output`."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"--output {output} cannot be written: {error.strerror}; name another folder"
        ) from error


def _progress(console: Console, label: str, items: Iterable[Any], total: int | None = None) -> Iterable[Any]:
    """Return `items`, with a progress bar on a terminal."""
    return track(items, label, total, console=console, transient=True, disable=not console.is_terminal)


def _print_table(outcomes: Sequence[FileOutcome], files: Files, bundle: Bundle) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    table = Table(title=RESEARCH_USE)
    for heading in ("lesion", "image", "box", "probability of cancer", "class", "remarks"):
        table.add_column(heading, overflow="fold")  # a truncated name identifies nothing
    for outcome in outcomes:
        for number, result in enumerate(_results(outcome), start=1):
            lesion, prediction = result.lesion, result.prediction
            frame = f" frame {lesion.frame}" if lesion.frame > 1 else ""
            table.add_row(
                f"{outcome.source.name} {number}",
                f"{files.paths[lesion.image_uid].name}{frame}",
                " ".join(f"{edge:.0f}" for edge in asdict(result.roi.box).values()),
                f"{100 * prediction.probability:.2f} %",
                "malignant" if prediction.malignant else "benign",
                "; ".join(_remarks(result)),
            )
        if outcome.classified is None or not outcome.classified.results:
            remark = "not classified" if outcome.classified is None else "nothing to classify"
            table.add_row(outcome.source.name, "-", "-", "-", "-", remark)
    console.print(table)
    for outcome in outcomes:
        for left_out in outcome.classified.reading.left_out if outcome.classified else ():
            console.print(f"{outcome.source.name}, left out: {left_out.what}: {left_out.reason}", soft_wrap=True)
    if not bundle.manifest.trained:
        console.print("The bundle is UNTRAINED: these results mean nothing.", style="bold red")


def _results(outcome: FileOutcome) -> Sequence[Result]:
    return outcome.classified.results if outcome.classified else ()


def _remarks(result: Result) -> list[str]:
    roi = result.roi
    remarks = [f"{100 * roi.padded:.0f} % of the box outside the image"] if roi.padded >= 0.005 else []
    if roi.spacing_assumed:
        remarks.append("pixel spacing assumed")
    return remarks


def _as_json(outcomes: Sequence[FileOutcome], files: Files, bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "research_use_only": True,
        "bundle": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": bundle.digest,
            "trained": manifest.trained,
            "threshold": manifest.threshold,
        },
        "lesion_objects": [
            {
                "file": str(outcome.source),
                "lesions": [
                    _lesion_as_json(number, result, files) for number, result in enumerate(_results(outcome), start=1)
                ],
                "left_out": [asdict(item) for item in outcome.classified.reading.left_out]
                if outcome.classified
                else [],
                "reports": outcome.reports,
                "pictures": outcome.pictures,
                "problems": outcome.problems,
            }
            for outcome in outcomes
        ],
        "refused": [{"file": str(path), "reason": reason} for path, reason in files.refused.items()],
    }


def _lesion_as_json(number: int, result: Result, files: Files) -> dict[str, Any]:
    """Return one lesion as JSON; coordinates are (column, row) in pixels as in DICOM's SCOORD.

    (0, 0) is the outer corner of the first pixel.
    """
    lesion, prediction = result.lesion, result.prediction
    return {
        "number": number,
        "image": str(files.paths[lesion.image_uid]),
        "image_uid": lesion.image_uid,
        "frame": lesion.frame,
        "outline": {
            "graphic_type": lesion.region.graphic_type,
            "points": lesion.region.points.tolist(),
        },
        "box": asdict(result.roi.box),
        "probability": prediction.probability,
        "class": "malignant" if prediction.malignant else "benign",
        "remarks": _remarks(result),
    }
