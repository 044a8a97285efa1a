"""SIGKILL of the service and of its processes while objects arrive; `make soak` kills 30 times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kills import kill_run
from tests.support.peers.archives import Orthanc
from tests.support.services import Service


@pytest.mark.peers
def test_service_and_its_processes_killed_under_load(
    new_service: Callable[..., Service], orthanc: Orthanc, tmp_path: Path
) -> None:
    service = new_service((orthanc.aet, orthanc.dicom_port))
    figures = kill_run(service, orthanc, tmp_path, objects=24, kills=4, seed=7, left=lambda: 120)
    assert figures["kills"] == {"service": 1, "classifier": 1, "decoder": 1, "receiver": 1}
    assert figures["reports in the archive"] == 12
