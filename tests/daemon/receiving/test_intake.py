"""Intake wakes the dispatcher when a job may have become ready, not for every image; what a job needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydicom import Dataset

from daemon.ledger import Ledger, jobs
from daemon.lesions.reader import References
from daemon.receiving.intake import Intake
from daemon.receiving.spooling import spool_instance
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.support.cases import Case, make_case
from tests.support.services import save


def test_the_dispatcher_is_woken_where_a_job_may_have_become_ready(tmp_path: Path, ledger: Ledger) -> None:
    spool = Spool(tmp_path / "spool")
    woken: list[str] = []

    def accept(dataset: Dataset) -> bool:
        """Whether it woke the dispatcher."""
        woken.clear()
        path = save(dataset, spool.incoming / "x.part")
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        intake = Intake(spool, ledger, "bundle", lambda: woken.append("woken"))
        intake.accept(
            ReceivedInstance(
                path, dataset.SOPClassUID, dataset.SOPInstanceUID, syntax, "PACS", "MAMMOD", "127.0.0.1", "a1"
            )
        )
        path.unlink()
        return bool(woken)

    def ready() -> int:
        with ledger.read() as connection:
            return jobs.by_state(connection)["ready"]

    first, second = (make_case(tmp_path / "cases", number) for number in (1, 2))
    accept(first.segmentation)  # its image is not here: whether this wakes anybody does not matter
    assert ready() == 0
    assert not accept(second.image), "nothing waits for it"
    assert accept(first.image) and ready() == 1, "the pair is complete"
    assert not accept(first.image), "it came twice"
    assert accept(second.segmentation) and ready() == 2, "the pair is complete, in the other order"
    assert accept(_changed(first)), "an image that a job read was replaced"


def test_an_image_that_is_named_as_a_segmentation_too_is_needed_once(tmp_path: Path, ledger: Ledger) -> None:
    spool = Spool(tmp_path / "spool")
    segmentation = make_case(tmp_path / "cases", 1).segmentation
    path = save(segmentation, spool.incoming / "x.part")
    syntax = str(segmentation.file_meta.TransferSyntaxUID)
    uids = segmentation.SOPClassUID, segmentation.SOPInstanceUID
    incoming = ReceivedInstance(path, *uids, syntax, "PACS", "MAMMOD", "127.0.0.1", "a1")
    placed = replace(spool_instance(incoming, spool), references=References(("1.2.3",), ("1.2.3",)))
    assert Intake(spool, ledger, "bundle", lambda: None).record([placed]) == [None]
    with ledger.read() as connection:
        assert list(jobs.needed_by(connection, 1)) == ["1.2.3"]


def _changed(case: Case) -> Dataset:
    case.image.PatientID = "CASE-1 CORRECTED"
    return case.image
