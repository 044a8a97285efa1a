"""`mammod classify`: the service's own way of the data on files, without network, spool or ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.table import Table

from config.errors import MammodError
from config.settings import Settings
from daemon.classifier import Classifier
from daemon.decode import DecoderPool
from daemon.errors import LesionError
from daemon.job import part10
from daemon.lesions import lesion_references
from daemon.pipeline import Classified, Pipeline, Written, read_inputs
from daemon.service import algorithm, open_bundle
from daemon.status import RESEARCH_USE


def classify_files(
    files: Sequence[Path], output: Path, settings: Settings, allow_untrained: bool, console: Console
) -> int:
    """Classify what the lesion objects among `files` mark; returns 0 when each of them was reported, else 1."""
    paths, sources = _sort(files, console)
    if not sources:
        console.print("No lesion object (SEG, or SR with a region on an image) is among these files.", style="red")
        return 1
    bundle = open_bundle(settings, allow_untrained)
    output.mkdir(parents=True, exist_ok=True)
    decoders = DecoderPool(min(len(paths), os.cpu_count() or 1), bundle.manifest)
    classifier = Classifier(bundle, settings.workers, settings.model.engine)
    table = Table("lesion object", "image", "probability of malignancy", "class", "report", title=RESEARCH_USE)
    bad = 0
    try:
        with console.status("warming the network up"):
            classifier.start()
        pipeline = Pipeline(decoders, classifier, algorithm(bundle), bundle.digest)
        for source in sources:
            try:
                inputs = read_inputs(source, paths.get)
                classified = pipeline.classify(inputs, settings.lesions.not_lesions)
                written = (
                    pipeline.write(inputs, classified, settings.reports.kinds, lambda *_: None).written
                    if classified.results
                    else ()
                )
            except MammodError as error:
                bad += 1
                console.print(f"{source}: {error}", style="red", soft_wrap=True)
                continue
            _show(table, source, classified, written, output, paths)
    finally:
        classifier.stop()
        decoders.stop()
    console.print(table)
    if not bundle.manifest.trained:
        console.print("The bundle is UNTRAINED: these numbers mean nothing.", style="bold red")
    return 1 if bad else 0


def _sort(files: Sequence[Path], console: Console) -> tuple[dict[str, Path], list[Path]]:
    """Every instance's file by its SOP Instance UID, and the lesion objects among them."""
    paths: dict[str, Path] = {}
    sources: list[Path] = []
    for path in files:
        try:
            header = dcmread(path, stop_before_pixels=True)
            paths[str(header.SOPInstanceUID)] = path
            if lesion_references(header) is not None:
                sources.append(path)
        except (InvalidDicomError, AttributeError, OSError) as error:
            console.print(
                f"{path}: left out, it is not a DICOM file ({type(error).__name__})", style="red", soft_wrap=True
            )
        except LesionError:
            sources.append(path)  # its reason is told when its turn comes
    return paths, sources


def _show(
    table: Table, source: Path, classified: Classified, written: Sequence[Written], output: Path, paths: dict[str, Path]
) -> None:
    for item in written:
        (output / f"{item.sop_instance_uid}.dcm").write_bytes(part10(item.report))
    report = f"{written[0].sop_instance_uid}.dcm" if written else "-"
    if not classified.results:
        table.add_row(source.name, "-", "-", "nothing to classify", report)
    for result in classified.results:
        table.add_row(
            source.name,
            paths[result.lesion.image_uid].name,
            f"{100 * result.prediction.probability:.2f} %",
            "malignant" if result.prediction.malignant else "benign",
            report,
        )
