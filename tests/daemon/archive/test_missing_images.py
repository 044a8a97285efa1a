"""What becomes of a job whose image has not come, when the archive is asked for it by DICOMweb."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import Row, select

from config.errors import ConfigurationError
from config.loading import require_archive
from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.missing_images import retrieve_missing
from daemon.ledger import Ledger
from daemon.ledger.schema import JobState, jobs
from daemon.receiving.intake import Intake
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.support.cases import Case, make_case
from tests.support.dicomweb_stubs import MULTIPART, Answer, instance, match, matches, multipart, stub


class Node:
    """Spool, ledger and intake of a service that asks the archive at `url`."""

    def __init__(self, ledger: Ledger, folder: Path, url: str) -> None:
        self.ledger = ledger
        self.spool = Spool(folder / "spool")
        self.intake = Intake(self.spool, ledger, "bundle", lambda: None)
        web = {"retrieve": "dicomweb", "dicomweb_url": url, "retrieve_after_s": 0, "timeout_s": 0.2}
        self.settings = Settings(archive=ArchiveSettings.model_validate(web))

    def receive(self, file: Path) -> None:
        header = dcmread(file, stop_before_pixels=True)
        copy = self.spool.incoming / file.name
        copy.write_bytes(file.read_bytes())
        named = (str(header.SOPClassUID), str(header.SOPInstanceUID), str(header.file_meta.TransferSyntaxUID))
        self.intake.accept(ReceivedInstance(copy, *named, "PACS", "MAMMOD", "127.0.0.1", "association"))
        copy.unlink()

    def ask(self) -> Row:
        """Ask the archive; the only job, afterwards."""
        archive = Archive(self.settings.archive, "MAMMOD", self.spool.incoming)
        retrieve_missing(self.ledger, archive, self.settings, self.intake.accept)
        with self.ledger.read() as connection:
            return connection.execute(select(jobs)).one()

    def due_now(self) -> None:
        with self.ledger.write() as connection:
            connection.execute(jobs.update().values(not_before=0))


def test_each_failure_is_shown_and_asked_again_until_the_image_is_here(ledger: Ledger, tmp_path: Path) -> None:
    case: Case = make_case(tmp_path / "case")
    uid, study, series = case.image.SOPInstanceUID, case.image.StudyInstanceUID, case.image.SeriesInstanceUID
    content = case.image_path.read_bytes()
    there = matches(match(uid, study, series))
    cut = Answer(body=multipart(content)[:-40], content_type=MULTIPART, length=len(content))
    now: dict[str, Answer | None] = {}
    with stub(lambda path: now["image" if "/series/" in path else "search"]) as (url, _):
        node = Node(ledger, tmp_path, url)
        node.receive(case.segmentation_path)
        for number, (search, image, said) in enumerate(
            (
                (Answer(401), None, "could not be asked: archive at 127.0.0.1 answered HTTP 401"),
                (None, None, "could not be asked: archive at 127.0.0.1: "),
                (matches(), None, f"does not have 1 of its images: {uid}"),
                (there, Answer(503), "not delivered all of them yet (HTTP 503"),
                (there, Answer(404), "not delivered all of them yet (HTTP 404"),
                (there, cut, "not delivered all of them yet (archive at 127.0.0.1: "),
                (there, instance(content[:-9]), "we refused it with 0xC000"),
                (there, instance(case.segmentation_path.read_bytes()), "we refused it with 0xA900"),
            ),
            1,
        ):
            now.update(search=search, image=image)
            before = time.time()
            job = node.ask()
            assert (job.state, job.attempts) == (JobState.WAITING, number) and said in job.reason, job.reason
            assert job.not_before > before
            node.due_now()
        now.update(image=instance(content))
        assert node.ask().state == JobState.READY
    assert list(node.spool.incoming.iterdir()) == []


def test_retrieval_by_dicomweb_needs_a_service_to_ask() -> None:
    web = "https://pacs.example.org/dicom-web"
    for named in ({"dicomweb_url": web}, {"stow_url": web}):
        require_archive(Settings.model_validate({"archive": {"host": "h", "retrieve": "dicomweb"} | named}))
    with pytest.raises(ConfigurationError, match=r"archive\.dicomweb_url"):
        require_archive(Settings.model_validate({"archive": {"host": "h", "retrieve": "dicomweb"}}))
