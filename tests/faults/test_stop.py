"""SIGTERM under load: nothing more is accepted, work in flight is finished or returned, exit status 0."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import make_case
from tests.support.kills import check_deep
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.persistent_sender import PersistentSender
from tests.support.services import Service


@pytest.mark.peers
@pytest.mark.timeout(600)  # three starts of the service
def test_sigterm_under_load(new_service: Callable[..., Service], storescp: StoreSCP, tmp_path: Path) -> None:
    cases = [make_case(tmp_path / "cases", number) for number in range(1, 13)]
    service = new_service((storescp.aet, storescp.dicom_port), settings={"service": {"shutdown_timeout_s": 4}})

    # Work that cannot end in time: it is given back as if it had never been begun.
    service.environment["MAMMOD_TEST_BATCH_S"] = "1000"
    service.start()
    dcmsend([path for case in cases[:3] for path in case.files], service.host, service.port, service.aet)
    wait_until(lambda: [job.state for job in service.jobs()] == ["running"] * 3, "three jobs under way")
    assert service.stop() == 0
    assert [(job.state, job.attempts) for job in service.jobs()] == [("ready", 0)] * 3
    assert storescp.files() == {}

    # Work that can: it is finished, while a sender goes on and on.
    service.environment["MAMMOD_TEST_BATCH_S"] = "0.1"
    service.start()
    sender = PersistentSender(service.host, service.port, service.aet)
    for case in cases:
        for path in case.files:
            sender.send(path)
    wait_until(lambda: len(sender.accepted) > 6, "some objects accepted")
    assert service.stop() == 0
    accepted = set(sender.accepted)
    assert accepted <= {row.sop_instance_uid for row in service.instances()}
    assert "running" not in {job.state for job in service.jobs()}
    assert check_deep(service).returncode == 0

    service.start()
    expected = {dataset.SOPInstanceUID for case in cases for dataset in (case.image, case.segmentation)}
    wait_until(lambda: set(sender.accepted) == expected, "every object accepted", 90)
    sender.stop()
    service.wait_jobs(*["done"] * 12)
    assert len(storescp.files()) == 12
    assert service.stop() == 0


@pytest.mark.peers
def test_an_archive_that_never_answers_does_not_hold_up_the_stop(
    new_service: Callable[..., Service], tmp_path: Path
) -> None:
    case = make_case(tmp_path / "cases")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"service": {"shutdown_timeout_s": 2}, "archive": {"timeout_s": 1000}}
        service = new_service(("SILENT", silent.getsockname()[1]), settings=settings)
        service.start()
        dcmsend(case.files, service.host, service.port, service.aet)
        service.wait_jobs("sending")
        connection, _ = silent.accept()
        with connection:
            assert service.stop() == 0  # in the 90 s that `Service.stop` gives it
        assert [item.state for item in service.outbox()] == ["queued"]
