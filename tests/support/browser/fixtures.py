"""One browser, one archive and one service for all tests of what viewers show."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from pydicom import Dataset, dcmread

from tests.support.browser import ohif
from tests.support.browser.chromium import running_chromium
from tests.support.browser.studies import Source, make_exam
from tests.support.peers.archives import Orthanc, running_orthanc
from tests.support.peers.programs import dcmsend
from tests.support.report_objects import items
from tests.support.services import service


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with running_chromium() as chromium:
        yield chromium


@dataclass(frozen=True)
class Read:
    """A lesion object and the report on it, as the archive gives it back."""

    source: Source
    report: Dataset

    @property
    def uid(self) -> str:
        return str(self.report.SOPInstanceUID)

    @property
    def probabilities(self) -> list[str]:
        """Of the lesions, in the order of the report, as OHIF writes numbers."""
        numbers = [item.MeasuredValueSequence[0].NumericValue for item in items(self.report, "111047")]
        return [f"{float(number):.2f} %" for number in numbers]


@dataclass(frozen=True)
class ReadingRoom:
    """An archive with an examination, its lesion objects and the service's reports on them."""

    archive: Orthanc
    study_uid: str
    reports: dict[str, Read]


@pytest.fixture(scope="session")
def reading_room(tmp_path_factory: pytest.TempPathFactory, untrained: Path) -> Iterator[ReadingRoom]:
    folder = tmp_path_factory.mktemp("reading-room")
    study, sources = make_exam(folder / "exam")
    with running_orthanc(folder / "orthanc", dicomweb=True) as archive:
        reports = {"reports": {"on_nothing": True}}
        with service(folder / "service", untrained, (archive.aet, archive.dicom_port), settings=reports) as node:
            node.start()
            files = [path for source in sources.values() for path in source.files]
            for aet, port in ((archive.aet, archive.dicom_port), (node.aet, node.port)):
                assert set(dcmsend(files, "127.0.0.1", port, aet).values()) == {0}
            node.wait_jobs(*["done"] * len(sources))
            made = {item.source_uid: item.sop_instance_uid for item in node.outbox()}
        yield ReadingRoom(
            archive,
            study,
            {
                name: Read(source, dcmread(io.BytesIO(archive.instance_file(made[source.uid]))))
                for name, source in sources.items()
            },
        )


@pytest.fixture(scope="session")
def ohif_url(reading_room: ReadingRoom) -> Iterator[str]:
    with ohif.serving(f"{reading_room.archive.url}/dicom-web") as url:
        yield url
