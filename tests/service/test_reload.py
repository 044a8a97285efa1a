"""SIGHUP: what can be reloaded is, a wrong file changes nothing; retention by size in the running service."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cases import Case, make_case
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.prometheus import ask, value
from tests.support.services import Service

pytestmark = pytest.mark.peers


def test_a_reloaded_limit_of_size_removes_what_is_finished_and_only_that(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port), settings={"retention": {"finished_days": 30}})
    service.start()
    assert service.process is not None
    dcmsend(case.files, service.host, service.port, service.aet)
    service.wait_jobs("done")
    waits = make_case(tmp_path / "waits", 2).segmentation_path  # its image does not come
    dcmsend([waits], service.host, service.port, service.aet)
    service.wait_jobs("done", "waiting")
    before = service.settings.read_text()

    def reload(text: str, heard: str) -> None:
        service.settings.write_text(text)
        service.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        wait_until(lambda: heard in service.log, heard, 30)

    reload(before.replace("finished_days = 30", "finished_dyas = 30"), "settings not reloaded")
    assert "did you mean 'finished_days'" in service.log and len(service.jobs()) == 2
    limited = before.replace("finished_days = 30", "finished_days = 30\nmax_bytes = 1").replace(
        f"port = {service.port}", f"port = {service.port + 1}"
    )
    reload(limited, "settings reloaded")
    told = next(line for line in service.log.splitlines() if "settings reloaded" in line)
    assert json.loads(told)["changed"] == ["retention"] and json.loads(told)["need_restart"] == ["listener"]
    service.wait_jobs("waiting")
    assert len(service.files()) == 1, "the lesion object that waits"
    assert service.outbox() == [] and len(storescp.files()) == 1, "the archive keeps its report"
    wait_until(lambda: "no finished work is left to delete" in service.log, "the warning", 30)

    def removed_for_room() -> dict[str, int]:
        return dict(json.loads(ask(service, "/live")[1])["removed_for_room"])

    wait_until(lambda: removed_for_room()["jobs"] == 1, "the sum of what was removed", 30)
    removed = removed_for_room()
    assert (removed["instances"], removed["reports"]) == (2, 1)
    for what in ("jobs", "instances", "reports"):
        assert value(service, "evicted_total", what=what) == removed[what]
    assert value(service, "evicted_bytes_total") == removed["bytes"] > 0
    # The image that comes at last still makes the job that was kept.
    dcmsend([waits.parent / "image-2.dcm"], service.host, service.port, service.aet)
    wait_until(lambda: len(storescp.files()) == 2, "its report", 60)
    assert service.stop() == 0
