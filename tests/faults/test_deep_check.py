"""`mammod check --deep` finds each way in which ledger and spool can disagree, and nothing else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import delete, select, text, update

from config.settings import Settings
from daemon.checks.run import deep_findings
from daemon.cli.app import main as mammod
from daemon.jobs.job_runner import JobRunner
from daemon.jobs.pipeline import Written
from daemon.ledger import Ledger, instances, job_claims, jobs, look, outbox, schema
from daemon.ledger.instances import StoredInstance
from daemon.ledger.outbox import Report
from daemon.maintenance.consistency_check import check_consistency
from daemon.storage.spool import Spool
from tests.support.archive_stubs import outgoing
from tests.support.cases import Case
from tests.support.fork_server import run_forked
from tests.support.kills import check_deep
from tests.support.ledgers import NODE, join
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.services import Service

JOB = schema.jobs
OUTBOX = schema.outbox
INSTANCE = schema.instances


class Kept:
    """A ledger and spool of one image, one lesion object that needs it, and its stored report."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        join(self.ledger)
        self.image, self.source = (self._instance(folder) for _ in range(2))
        written = outgoing(folder)
        placed = self.spool.write_report(written.sop_instance_uid, written.path.read_bytes())
        with self.ledger.write() as connection:
            rows = [instances.record(connection, instance)[1] for instance in (self.image, self.source)]
            needed = [self.image.sop_instance_uid]
            self.job = jobs.create(connection, rows[1], self.source.sop_instance_uid, needed, "bundle", 1.0)
            (claimed,) = job_claims.claim(connection, NODE, 1, 2.0)
            job_claims.sending(connection, claimed, {}, 3.0)
            report = Report(
                "tid1500", written.sop_class_uid, written.sop_instance_uid, "1.2", "1.2", written.transfer_syntax_uid,
                placed.path, placed.size, placed.digest,
            )  # fmt: skip
            outbox.put(connection, self.job, self.source.sop_instance_uid, [report], 3.0)
            (item,) = outbox.claim(connection, NODE, 4.0, 9)
            outbox.stored(connection, item.id, 0, None, 4.0, NODE)
        self.report = report

    def _instance(self, folder: Path) -> StoredInstance:
        item = outgoing(folder)
        placed = self.spool.add_instance(item.path, item.sop_instance_uid)
        return StoredInstance(
            item.sop_instance_uid, item.sop_class_uid, "1.2", "1.2", item.transfer_syntax_uid,
            placed.digest, placed.size, placed.path, "TESTS", 1.0,
        )  # fmt: skip

    def execute(self, statement: object) -> None:
        with self.ledger.write() as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def file(self, row: StoredInstance | Report) -> Path:
        return self.spool.absolute(row.path)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.ledger.close()


def test_agreement_is_no_fault_and_everything_is_hashed(kept: Kept) -> None:
    found = check_consistency(kept.ledger, kept.spool)
    assert found.faults == []
    assert (found.instances, found.reports, found.jobs) == (2, 1, 1)
    assert found.bytes_hashed == sum(entry.size for entry in kept.spool.entries())


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def orphan(kept: Kept) -> None:
    path = kept.file(kept.image).with_name("0" * 64 + ".dcm")
    path.write_bytes(b"left over")
    os.utime(path, (time.time() - 3600, time.time() - 3600))


FAULTS: dict[str, tuple[Callable[[Kept], object], str]] = {
    "an instance's file is gone": (lambda kept: kept.file(kept.image).unlink(), "is missing"),
    "an instance's file is cut": (lambda kept: os.truncate(kept.file(kept.image), 300), "300 bytes"),
    "a bit of an instance fell over": (lambda kept: flip_last_byte(kept.file(kept.image)), "not what was written"),
    "a report's file is gone": (lambda kept: kept.file(kept.report).unlink(), "is missing"),
    "a bit of a report fell over": (lambda kept: flip_last_byte(kept.file(kept.report)), "not what was written"),
    "another instance's file in its place": (
        lambda kept: (
            kept.execute(
                update(INSTANCE)
                .where(INSTANCE.c.sop_instance_uid == kept.image.sop_instance_uid)
                .values(path=kept.source.path, size=kept.source.size, digest=kept.source.digest)
            ),
            kept.file(kept.image).unlink(),
        ),
        "holds SOP Instance UID",
    ),
    "a file without a row": (orphan, "no row knows it"),
    "two current versions": (
        lambda kept: kept.execute(update(INSTANCE).values(sop_instance_uid=kept.image.sop_instance_uid)),
        "2 of its versions are marked current",
    ),
    "done with a queued report": (lambda kept: kept.execute(update(OUTBOX).values(state="queued")), "not stored"),
    "done without a report or reason": (lambda kept: kept.execute(delete(OUTBOX)), "neither a report nor a reason"),
    "sending with nothing to send": (lambda kept: kept.execute(update(JOB).values(state="sending")), "no report"),
    "failed with nothing refused": (lambda kept: kept.execute(update(JOB).values(state="failed")), "was refused"),
    "quarantined without a reason": (
        lambda kept: kept.execute(update(JOB).values(state="quarantined")),
        "without a reason",
    ),
    "waiting for what is here": (lambda kept: kept.execute(update(JOB).values(state="waiting")), "all that it needs"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_disagreement_is_found(name: str, kept: Kept) -> None:
    harm, said = FAULTS[name]
    harm(kept)
    faults = check_consistency(kept.ledger, kept.spool).faults
    assert any(said in fault for fault in faults), faults


def test_a_file_whose_row_is_about_to_come_is_no_fault(kept: Kept) -> None:
    kept.file(kept.image).with_name("0" * 64 + ".dcm").write_bytes(b"being received")
    assert check_consistency(kept.ledger, kept.spool).faults == []


def test_an_older_version_that_outlives_the_current_one_is_no_fault(kept: Kept) -> None:
    """A quarantined lesion object is kept for longer than the work on the version that replaced it."""
    kept.execute(delete(OUTBOX))
    kept.spool.delete([kept.report.path])
    kept.execute(update(JOB).values(state="quarantined", reason="cannot be used"))
    kept.execute(update(INSTANCE).where(INSTANCE.c.path == kept.source.path).values(state="superseded"))
    assert check_consistency(kept.ledger, kept.spool).faults == []


def test_work_done_again_leaves_a_report_as_it_was_first_written(kept: Kept) -> None:
    """The same SOP Instance UID with another content would be in the archive already."""
    path = kept.file(kept.report)
    first = path.read_bytes()
    again = dcmread(path)
    again.ContentTime = "120000"
    unused: Any = None
    worker = JobRunner(unused, kept.ledger, kept.spool, unused)
    assert worker._store(Written("tid1500", again)) == kept.report
    assert path.read_bytes() == first
    path.unlink()
    written = worker._store(Written("tid1500", again))
    assert path.stat().st_size == written.size != kept.report.size
    with kept.ledger.write() as connection:
        assert outbox.put(connection, kept.job, kept.source.sop_instance_uid, [written], 5.0) == 0
    assert check_consistency(kept.ledger, kept.spool).faults == [], "the row says what lies there"


@pytest.mark.peers
def test_the_command_beside_a_running_service(
    new_service: Callable[..., Service], storescp: StoreSCP, case: Case
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start()
    dcmsend(case.files, service.host, service.port, service.aet)
    service.wait_jobs("done")
    good = check_deep(service)
    assert good.returncode == 0, good.stdout
    assert "2 instances, 1 reports and 1 jobs" in good.stdout
    (item,) = service.outbox()
    (service.spool / item.path).unlink()
    bad: subprocess.CompletedProcess[str] = check_deep(service)
    assert bad.returncode == 1
    assert f"BAD report {item.sop_instance_uid}" in bad.stdout

    (job,) = service.jobs()
    assert "will be rewritten" in _retry(service, job.id, 0)
    service.wait_jobs("done")
    wait_until(lambda: (service.spool / item.path).is_file(), "the report written again")
    service.wait_jobs("done")
    assert check_deep(service).returncode == 0
    assert "only a quarantined" in _retry(service, job.id, 1), "nothing of it is damaged now"
    assert len(storescp.files()) == 1 and len(service.outbox()) == 1, "it is the same report, which is not sent again"
    assert service.stop() == 0


def _retry(service: Service, job: int, status: int) -> str:
    done = run_forked(mammod, "jobs", "retry", "--config", service.settings, job, environment=os.environ, limit_s=90)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_a_ledger_of_an_earlier_version_is_left_as_it_is(kept: Kept, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    kept.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    settings = Settings.model_validate({"spool": {"directory": str(tmp_path / "spool")}, "ledger": {"url": url}})
    (finding,) = deep_findings(settings)
    assert not finding.good and "0001" in finding.text and "start the service" in finding.text
    assert look(url).present == "0001"


def test_a_ledger_of_the_first_schema_keeps_its_rows(kept: Kept) -> None:
    """The digest of older reports is unknown: they are checked by size and SOP Instance UID."""
    kept.execute(update(OUTBOX).values(digest=None))
    assert check_consistency(kept.ledger, kept.spool).faults == []
    with kept.ledger.read() as connection:
        assert connection.execute(select(OUTBOX.c.commit_attempts)).scalar_one() == 0
