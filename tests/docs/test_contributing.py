"""The recipes of CONTRIBUTING.md, followed once: a toy lesion source, a toy kind of report, a toy check."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RawDataStorage, SecondaryCaptureImageStorage
from typer.testing import CliRunner

from config.settings import Lesions, Reports, Settings
from daemon.checks import run as checks
from daemon.checks.finding import Finding
from daemon.cli.app import app
from daemon.dicom import sop_classes
from daemon.dicom.equipment import is_own_report
from daemon.jobs.pipeline import Pipeline
from daemon.jobs.pipeline import Reports as WrittenReports
from daemon.lesions import reader
from daemon.lesions.marks import Mark, Shape
from daemon.lesions.references import image_reference
from daemon.lesions.sr_tree import Description
from daemon.receiving.spooling import spool_instance
from daemon.reports import registry
from daemon.reports.base_object import on_image, shown_images
from daemon.reports.case import Case, Edition
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.daemon.conftest import spool  # noqa: F401 - a fixture
from tests.daemon.reports.test_registry import classified, pipeline
from tests.support import report_objects
from tests.support.lesion_objects import mammogram
from tests.support.services import save

ROOT = Path(__file__).parents[2]
CORNERS = [(60.0, 100.0), (110.0, 100.0), (110.0, 140.0), (60.0, 140.0), (60.0, 100.0)]


# --- a lesion source: a workstation that annotates in Raw Data, which is neither SR nor SEG ---


def raw_data(image: Dataset) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = RawDataStorage, report_objects.uid("raw data")
    made.StudyInstanceUID, made.SeriesInstanceUID = image.StudyInstanceUID, report_objects.uid("series of raw data")
    made.PatientID = image.PatientID
    graphic = Dataset()
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions, graphic.GraphicType = "PIXEL", 2, "POLYLINE"
    graphic.GraphicData = [value for point in CORNERS for value in point]
    graphic.NumberOfGraphicPoints, graphic.GraphicFilled = len(CORNERS), "N"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    annotation = Dataset()
    annotation.ReferencedImageSequence, annotation.GraphicObjectSequence = [reference], [graphic]
    made.GraphicAnnotationSequence = [annotation]
    return report_objects.as_read(made)


def raw_data_marks(dataset: Dataset) -> list[Mark]:
    """The toy reader: each graphic of each annotation is a mark on the image that the annotation names."""
    return [
        Mark(
            where=f"annotation {number}",
            description=Description(),
            shapes=(
                Shape(
                    str(graphic.GraphicType),
                    tuple(graphic.GraphicData),
                    image_reference(annotation.ReferencedImageSequence[0]),
                ),
            ),
        )
        for number, annotation in enumerate(dataset.GraphicAnnotationSequence, start=1)
        for graphic in annotation.GraphicObjectSequence
    ]


def open_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2: `may_be_lesion_object` knows the class, wherever it is asked."""
    gate = sop_classes.may_be_lesion_object

    def opened(sop_class_uid: str) -> bool:
        return sop_class_uid == RawDataStorage or gate(sop_class_uid)

    asking = [module for module in list(sys.modules.values()) if vars(module).get("may_be_lesion_object") is gate]
    assert len(asking) >= 2, "its own module and the one that spools"
    for module in asking:
        monkeypatch.setattr(module, "may_be_lesion_object", opened)


def call_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 4: `_marks` of the reader calls the new function for the class."""
    marks = reader._marks

    def with_the_toy(dataset: Dataset) -> list[Mark]:
        return raw_data_marks(dataset) if dataset.SOPClassUID == RawDataStorage else marks(dataset)

    monkeypatch.setattr(reader, "_marks", with_the_toy)


@pytest.fixture
def image() -> Dataset:
    return mammogram(400, 320)


@pytest.fixture
def receive(spool: Spool) -> Callable[[Dataset], tuple[str, ...] | None]:  # noqa: F811
    """Receives a lesion object; gives the images that its job needs, None if it counted as none."""

    def received(dataset: Dataset) -> tuple[str, ...] | None:
        path = save(dataset, spool.incoming / "x.part")
        incoming = ReceivedInstance(
            path=path,
            sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID,
            transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
            calling_ae="WORKSTATION",
            called_ae="MAMMOD",
            peer_address="127.0.0.1",
            association_id="a1",
            study_uid=dataset.StudyInstanceUID,
            series_uid=dataset.SeriesInstanceUID,
        )
        references = spool_instance(incoming, spool).references
        return references.image_uids if references else None

    return received


def lesions_of(source: Dataset, image: Dataset) -> Any:
    settings = Lesions()
    read: Callable[..., Any] = reader.read_lesions
    takes_settings = "settings" in inspect.signature(read).parameters
    given = (settings,) if takes_settings else (settings.not_lesions, settings.max_per_object)
    return read(source, {str(image.SOPInstanceUID): image}, {}, *given).lesions


def test_a_lesion_source_is_received_and_read_to_half_a_pixel(
    image: Dataset, receive: Callable[[Dataset], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = raw_data(image)
    open_the_gate(monkeypatch)
    call_the_reader(monkeypatch)
    assert receive(source) == (image.SOPInstanceUID,), "its job waits for the image that it names"
    (lesion,) = lesions_of(source, image)
    assert lesion.image_uid == image.SOPInstanceUID
    assert np.abs(lesion.region.points - np.array(CORNERS)).max() <= 0.5


@pytest.mark.parametrize("step", [open_the_gate, call_the_reader])
def test_one_of_the_two_steps_alone_reads_nothing(
    step: Callable[[pytest.MonkeyPatch], None],
    image: Dataset,
    receive: Callable[[Dataset], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step(monkeypatch)
    assert receive(raw_data(image)) is None


# --- a kind of report: one Secondary Capture without pixels for each image ---


def toy_kind(case: Case, edition: Edition) -> list[Dataset]:
    made = []
    for shown in shown_images(case).values():
        made.append(
            on_image(
                shown,
                case,
                edition,
                sop_class_uid=SecondaryCaptureImageStorage,
                modality="OT",
                series_number=9199,
            )
        )
    return made


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 5: `KINDS` and `KIND_CLASSES`."""
    kinds: Mapping[str, Any] = {**registry.KINDS, "toy": toy_kind}
    classes = {**registry.KIND_CLASSES, "toy": SecondaryCaptureImageStorage}
    for module in [module for module in list(sys.modules.values()) if vars(module).get("KINDS") is registry.KINDS]:
        if module is not registry:
            monkeypatch.setattr(module, "KINDS", kinds)
    monkeypatch.setattr(registry, "KINDS", kinds)
    monkeypatch.setattr(registry, "KIND_CLASSES", classes)


def write(*kinds: str) -> WrittenReports:
    inputs, result = classified()
    made: Pipeline = pipeline()
    return made.write(inputs, replace(result, digest="digest"), kinds, lambda _: ())


def test_a_kind_of_report_is_written_recognised_and_said_to_be_research(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    register(monkeypatch)
    first, again = write("tid1500", "toy"), write("tid1500", "toy")
    assert [item.kind for item in first.written] == ["tid1500", "toy"] and not first.refused
    assert [item.sop_instance_uid for item in first.written] == [item.sop_instance_uid for item in again.written]
    made = first.written[1].report
    made.save_as(tmp_path / "toy.dcm", enforce_file_format=True)
    assert is_own_report(dcmread(tmp_path / "toy.dcm")), "an archive that sends it back starts no loop"
    assert "RESEARCH ONLY" in made.SeriesDescription


def test_a_kind_that_the_settings_do_not_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    (named, _ellipsis) = get_args(Reports.model_fields["kinds"].annotation)
    assert set(registry.KINDS) - set(get_args(named)) == {"toy"}, "test_registry holds the two equal"


# --- a check: is the spool's path short enough to be read aloud? ---


def toy_findings(settings: Settings) -> Iterator[Finding]:
    length = len(str(settings.spool.directory))
    yield Finding("toy", length < 10, f"[spool] directory has {length} characters; choose a path of fewer than 10")


def test_a_check_is_shown_with_what_to_do_and_decides_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "findings", lambda settings, _allow_untrained: toy_findings(settings))
    for directory, level, status in (("/tmp/a", "ok", 0), (tmp_path / "a-long-name", "bad", 1)):
        (tmp_path / "site.toml").write_text(f'[spool]\ndirectory = "{directory}"\n')
        said = CliRunner().invoke(app, ["check", "--json", "--config", str(tmp_path / "site.toml")])
        (finding,) = json.loads(said.stdout)["findings"]
        assert (finding["subject"], finding["level"], said.exit_code) == ("toy", level, status)
        assert "choose a path" in finding["text"]


# --- what the recipes name ---


def recipes() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_file_that_the_recipes_name_is_there() -> None:
    named = set(re.findall(r"`((?:config|daemon|model|training|tests|docs|deploy)/[\w./-]+?)/?`", recipes()))
    assert len(named) > 15
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_name_in_code_that_the_recipes_give_is_there() -> None:
    """A call such as `on_image()`, or a constant such as `KINDS`, is in one of the files of its recipe."""
    for section in re.split(r"^## ", recipes(), flags=re.MULTILINE):
        files = [
            ROOT / name for name in re.findall(r"`((?:config|daemon|model|training|tests)/[\w./-]+\.py)`", section)
        ]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        names = re.findall(r"`(?:\w+\.)?(\w+\(\)|[A-Z][A-Z_]{3,})`", section)
        assert not [name for name in names if name.removesuffix("()") not in text], section.partition("\n")[0]
