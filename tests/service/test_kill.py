"""Invariants 1 and 2: SIGKILL between any two steps, and a restart ends with exactly one report for the
lesion object.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.support.cases import Case, make_case
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.services import Service

# Along the way of the data, each step of which something is done that must not be lost or done twice.
STEPS = (
    "daemon.receiving.intake:Intake.accept:before",  # received, nothing durable
    "daemon.storage.spool:Spool.add_instance:after",  # the file is durable, its row is not
    "daemon.ledger.instances:record:after",  # inside the transaction
    "daemon.receiving.intake:Intake.accept:after",  # durable, the sender not answered yet
    "daemon.jobs.job_runner:JobRunner.run:before",  # the job is claimed
    "daemon.jobs.pipeline:Pipeline.classify:after",  # classified, nothing written
    "daemon.storage.spool:Spool.write_report:after",  # the report's file is durable, its row is not
    "daemon.ledger.job_claims:sending:after",  # inside the transaction
    "daemon.jobs.dispatcher:Dispatcher._after_work:before",  # the report is queued, nobody was told
    "daemon.archive.client:Archive.store:before",  # this node has it, and is about to send
    "daemon.archive.outbox_sender:_record:before",  # the archive has it, the ledger does not know
    "daemon.ledger.outbox:stored:after",  # inside the transaction
    "daemon.archive.outbox_sender:_record:after",  # all is done
)


@pytest.mark.peers
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_and_started_again_gives_exactly_one_report(
    step: str, new_service: Callable[..., Service], storescp: StoreSCP, case: Case
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start(crash=step)
    answered = dcmsend(case.files, service.host, service.port, service.aet)
    assert service.wait_dead() == -9, f"the service never came to {step}"

    service.start()
    accepted = {uid for uid, status in answered.items() if status == 0}
    known = {row.sop_instance_uid for row in service.instances()}
    assert accepted <= known, "what was answered with success is still here"
    again = [path for path in case.files if dcmread(path, stop_before_pixels=True).SOPInstanceUID not in accepted]
    if again:
        assert set(dcmsend(again, service.host, service.port, service.aet).values()) == {0}
    service.wait_jobs("done")
    (item,) = service.outbox()
    assert item.state == "stored"
    wait_until(lambda: item.sop_instance_uid in storescp.files(), "the report in the archive")
    assert set(storescp.files()) == {item.sop_instance_uid}
    assert service.stop() == 0
    assert service.files() == {row.path for row in (*service.instances(), *service.outbox())}, "no file without a row"


@pytest.mark.peers
def test_killed_at_random_moments_under_load(
    new_service: Callable[..., Service], storescp: StoreSCP, tmp_path: Path
) -> None:
    cases = [make_case(tmp_path / "cases", number) for number in range(1, 9)]
    files = [path for case in cases for path in case.files]
    service = new_service((storescp.aet, storescp.dicom_port))
    for done_before_kill in (1, 4, 6):
        service.start()
        dcmsend(files, service.host, service.port, service.aet)
        wait_until(
            lambda target=done_before_kill: sum(job.state == "done" for job in service.jobs()) >= target,
            f"{done_before_kill} jobs done",
            90,
        )
        service.kill()
    service.start()
    service.wait_jobs(*["done"] * len(cases))
    assert len(storescp.files()) == len(cases)
    sources = {row.source_uid for row in service.outbox()}
    assert sources == {case.segmentation.SOPInstanceUID for case in cases}
    assert service.stop() == 0
