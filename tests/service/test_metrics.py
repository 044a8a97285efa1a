"""What a running service tells Prometheus and those who ask for its health, against what was done to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine

import config
from daemon.workers.bundle_source import default_bundle_path
from tests.support.cases import Case, make_case
from tests.support.peers.archives import StoreSCP, running_storescp
from tests.support.peers.programs import dcmsend, program, wait_until
from tests.support.prometheus import ask, value, values
from tests.support.scu import EXPLICIT, MAMMOGRAM, request_association, store
from tests.support.scu import mammogram as small_mammogram
from tests.support.services import Service, service

pytestmark = pytest.mark.peers


@dataclass(frozen=True)
class Node:
    """A service that knows one peer, with an audit trail."""

    service: Service
    archive: StoreSCP
    pids: Path


@pytest.fixture
def node(tmp_path: Path, storescp: StoreSCP) -> Iterator[Node]:
    pids = tmp_path / "pids"
    pids.mkdir()
    settings = {
        "listener": {"peers": [{"ae_title": "MODALITY"}]},
        "audit": {"file": str(tmp_path / "audit.log")},
    }
    archive = (storescp.aet, storescp.dicom_port)
    with service(tmp_path / "service", default_bundle_path(), archive, settings=settings) as made:
        made.environment["MAMMOD_TEST_PIDS"] = str(pids)
        made.start()
        yield Node(made, storescp, pids)


def send(case: Case, to: Service) -> None:
    assert set(dcmsend(case.files, to.host, to.port, to.aet).values()) == {0}


def test_what_was_done_is_what_is_told(node: Node, case: Case, tmp_path: Path) -> None:
    served = node.service
    assert value(served, "instances_accepted_total", arrival="new") == 0, "every series is there from the start"
    assert values(served, "archive_up") == [], "it was not asked anything yet"
    assert (value(served, "nodes", state="alive"), value(served, "nodes", state="silent")) == (1, 0)

    send(case, served)
    dcmsend([case.image_path], served.host, served.port, served.aet)
    assert not request_association(served.port, calling="STRANGER").is_established
    association = request_association(served.port, [(MAMMOGRAM, [EXPLICIT])])
    assert store(association, b"nonsense", small_mammogram().SOPInstanceUID).Status >> 12 == 0xC
    assert value(served, "associations_open") == 1
    association.release()
    served.wait_jobs("done")
    wait_until(lambda: value(served, "associations_open") == 0, "the association ended")

    assert value(served, "associations_accepted_total") == 3
    assert value(served, "associations_rejected_total", reason="unknown_peer") == 1
    assert value(served, "associations_rejected_total", reason="busy") == 0
    assert value(served, "instances_received_total", kind="mammogram", status="0000") == 2
    assert value(served, "instances_received_total", kind="segmentation", status="0000") == 1
    assert value(served, "instances_received_total", kind="mammogram", status="C000") == 1
    assert value(served, "instances_accepted_total", arrival="new") == 2
    assert value(served, "instances_accepted_total", arrival="duplicate") == 1
    in_spool = sum(row.size for row in served.instances())
    image = next(row.size for row in served.instances() if row.sop_instance_uid == case.image.SOPInstanceUID)
    assert value(served, "received_bytes_total") == in_spool + image
    assert value(served, "jobs", state="done") == value(served, "reports", state="stored") == 1
    assert value(served, "jobs", state="sending") == 0
    assert value(served, "job_attempts_total", outcome="classified") == value(served, "lesions_classified_total") == 1
    assert value(served, "jobs_worked_total", outcome="classified") == 1, "the old name, until 0.3"
    assert value(served, "reports_sent_total", kind="tid1500", outcome="stored") == 1
    assert value(served, "classifier_batch_rois_count") == value(served, "classifier_batch_rois_sum") == 1
    passages = {"receive": 4, "decode": 1, "classify": 1, "report": 1, "send": 1}
    assert {stage: value(served, "stage_seconds_count", stage=stage) for stage in passages} == passages
    assert all(value(served, "stage_cpu_seconds_total", stage=stage) > 0 for stage in passages)
    assert 0 < value(served, "job_turnaround_seconds_sum") < 60
    assert value(served, "archive_up") == 1
    assert abs(value(served, "archive_last_stored_timestamp_seconds") - time.time()) < 60
    assert value(served, "audit_messages_total", outcome="delivered") >= 3, "start, transfers, a stranger"
    assert value(served, "build_info", version=config.__version__) == 1
    assert value(served, "bundle_info", trained="true", engine="stand-in") == 1
    assert 0 < value(served, "spool_free_bytes") < value(served, "spool_disk_bytes")

    (classifier,) = node.pids.iterdir()
    os.kill(int(classifier.name), signal.SIGKILL)
    wait_until(lambda: value(served, "workers_alive", worker="classifier") == 0, "the death told")
    assert value(served, "workers_expected", worker="classifier") == 1
    send(make_case(tmp_path / "second", 2), served)
    served.wait_jobs("done", "done")
    assert value(served, "worker_restarts_total", worker="classifier") == 1
    assert value(served, "workers_alive", worker="classifier") == 1


def test_an_archive_that_is_gone_shows_in_queue_age_and_health(tmp_path: Path, case: Case) -> None:
    with running_storescp(tmp_path / "archive") as archive:
        pass  # its port is nobody's now
    with service(tmp_path / "service", default_bundle_path(), (archive.aet, archive.dicom_port)) as served:
        served.start()
        send(case, served)
        wait_until(lambda: value(served, "archive_failures_in_a_row") >= 2, "two attempts", 60)
        assert value(served, "archive_up") == 0
        assert value(served, "queue_depth", queue="outbox") == value(served, "jobs", state="sending") == 1
        first = value(served, "queue_oldest_age_seconds", queue="outbox")
        assert 0 < first <= value(served, "job_oldest_age_seconds", state="sending") < 60
        wait_until(lambda: value(served, "queue_oldest_age_seconds", queue="outbox") > first, "it grows older")
        assert value(served, "reports_sent_total", kind="tid1500", outcome="retry") >= 2
        assert ask(served, "/readyz") == (200, '{"ready": true, "reasons": []}'), "what comes is still taken"
        seen = json.loads(ask(served, "/overview")[1])
        assert "cannot be reached" in seen["archive"]["problem"]
        assert served.log.count("archive does not answer") == 1, "once, not for each attempt"


def test_readiness_and_health_say_why_not_and_promtool_finds_nothing_wrong(node: Node) -> None:
    served = node.service
    assert ask(served, "/healthz") == (200, '{"alive": true, "reasons": []}')
    assert ask(served, "/readyz") == (200, '{"ready": true, "reasons": []}')
    assert value(served, "ready") == 1
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=ask(served, "/metrics")[1], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    engine = create_engine(f"sqlite:///{served.spool / 'ledger.sqlite'}")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # another program holds the ledger
        code, body = ask(served, "/readyz")
        assert code == 503 and json.loads(body) == {
            "ready": False,
            "reasons": ["the ledger did not take a write within 5 s"],
        }
        assert ask(served, "/healthz")[0] == 200
        connection.exec_driver_sql("ROLLBACK")
    engine.dispose()
    wait_until(lambda: ask(served, "/readyz")[0] == 200, "ready again", 60)

    # While it drains: a job that takes its time keeps it from ending.
    association = request_association(served.port, [(MAMMOGRAM, [EXPLICIT])])
    assert served.process is not None
    served.process.send_signal(signal.SIGTERM)
    told: list[str] = []

    def draining() -> bool:
        code, body = ask(served, "/readyz")
        told.append(body)
        return code == 503

    wait_until(draining, "not ready", 20)
    assert json.loads(told[-1])["reasons"] == ["the service is draining"]
    association.release()
    assert served.process.wait(60) == 0
