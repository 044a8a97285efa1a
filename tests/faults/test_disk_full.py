"""A full disk: the sender is told A700, and the service continues by itself when there is space again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.jobs.dispatcher import Dispatcher
from daemon.ledger import Ledger, database, instances, job_claims, jobs
from daemon.ledger.instances import StoredInstance
from daemon.ledger.records import Job
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.support.cases import make_case
from tests.support.ledgers import hold, join
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.scu import encode, listener_settings, listening, mammogram, request_association, store
from tests.support.services import Service

MIB = 1 << 20


LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@contextmanager
def locked_elsewhere(ledger: Path) -> Iterator[Callable[[], None]]:
    """Another process holds SQLite's write lock until what this gives is called."""
    command = [sys.executable, "-c", LOCKS, str(ledger)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None

        def give_back() -> None:
            other.communicate("go on\n", timeout=20)

        try:
            assert other.stdout.readline() == "locked\n"
            yield give_back
        finally:
            other.kill()


class Disk:
    """A file system of its own; `fill` takes all free space but `leave` bytes, `free` gives it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filler = folder / "filler"

    def fill(self, leave: int = 0) -> None:
        stat = os.statvfs(self.folder)
        with self.filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, stat.f_bavail * stat.f_frsize - leave))

    def free(self) -> None:
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Makes a tmpfs of so many MiB; skips by name where mounting is not permitted."""
    mounted: list[Path] = []

    def make(size: int) -> Disk:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        mounted.append(folder)
        return Disk(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Receiving:
    """Listener, intake, spool and ledger as the service has them, in this process."""

    def __init__(self, spool: Path, ledger: Path, min_free: int = 0) -> None:
        self.spool = Spool(spool, min_free)
        self.ledger = Ledger(f"sqlite:///{ledger}")
        self.intake = Intake(self.spool, self.ledger, "bundle", lambda: None)
        self.listener = Listener(listener_settings(), self.spool.incoming, self.accept, full=self.full)

    def accept(self, incoming: ReceivedInstance) -> None:
        self.intake.accept(incoming)

    def full(self) -> str | None:
        try:
            self.spool.check_room()
        except Exception as error:
            return str(error)
        return None

    def send(self, *images: Any) -> list[int]:
        association = request_association(self.listener.port)
        assert association.is_established
        statuses = [store(association, encode(image), image.SOPInstanceUID).Status for image in images]
        association.release()
        return statuses

    def known(self) -> set[str]:
        with self.ledger.read() as connection:
            return set(connection.exec_driver_sql("SELECT sop_instance_uid FROM instances").scalars())


def test_full_during_receive(disk: Callable[[int], Disk], tmp_path: Path) -> None:
    small = disk(8)
    receiving = Receiving(small.folder / "spool", tmp_path / "ledger.sqlite")
    images = [mammogram(number, size=512) for number in range(1, 4)]  # 0.5 MiB each
    with listening(receiving.listener):
        small.fill(leave=MIB // 4)
        assert receiving.send(*images) == [0xA700] * 3, "refused one by one; the association goes on"
        assert receiving.known() == set()
        wait_until(lambda: not list(receiving.spool.incoming.iterdir()), "no half file left")
        small.free()
        assert receiving.send(*images) == [0] * 3
    assert receiving.known() == {image.SOPInstanceUID for image in images}
    receiving.ledger.close()


def test_full_during_the_ledgers_commit(disk: Callable[[int], Disk], tmp_path: Path) -> None:
    small = disk(2)
    receiving = Receiving(tmp_path / "spool", small.folder / "ledger.sqlite")
    images = [mammogram(number) for number in range(1, 4)]
    with listening(receiving.listener):
        small.fill()
        assert receiving.send(*images) == [0xA700] * 3
        assert receiving.known() == set()
        small.free()
        assert receiving.send(*images) == [0] * 3
    assert receiving.known() == {image.SOPInstanceUID for image in images}
    receiving.ledger.close()


def test_min_free_refuses_associations_before_the_disk_is_full(disk: Callable[[int], Disk], tmp_path: Path) -> None:
    small = disk(8)
    receiving = Receiving(small.folder / "spool", tmp_path / "ledger.sqlite", min_free=2 * MIB)
    with listening(receiving.listener):
        association = request_association(receiving.listener.port)
        small.fill(leave=MIB)
        refused = request_association(receiving.listener.port)
        assert refused.is_rejected
        answer = refused.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 1), "rejected-transient, congestion"
        image = mammogram()
        assert store(association, encode(image), image.SOPInstanceUID).Status == 0xA700, "in an older association too"
        association.release()
        small.free()
        assert receiving.send(image) == [0]
    receiving.ledger.close()


def test_a_ledger_that_another_process_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_MS", 2000)
    receiving = Receiving(tmp_path / "spool", tmp_path / "ledger.sqlite")
    first, second = mammogram(1), mammogram(2)
    with listening(receiving.listener):
        with locked_elsewhere(tmp_path / "ledger.sqlite") as give_back:
            assert receiving.send(first) == [0xA700], "it may be sent again, as nothing is wrong with it"
            ends_in_time = threading.Timer(0.5, give_back)
            ends_in_time.start()
            assert receiving.send(second) == [0]
            ends_in_time.join()
        assert receiving.send(first) == [0]
    assert receiving.known() == {first.SOPInstanceUID, second.SOPInstanceUID}
    receiving.ledger.close()


def test_jobs_go_on_when_the_ledger_that_was_locked_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_MS", 100)
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(ledger)
    done: list[int] = []

    def do(job: Job) -> None:
        ledger.transact(lambda connection: job_claims.done(connection, job, "nothing to classify", None, time.time()))
        done.append(job.id)

    def make_job(uid: str) -> None:
        with ledger.write() as connection:
            instance = StoredInstance(uid, "1.2", "1.2", "1.2", "1.2", "d", 1, uid, "TESTS", 1.0)
            _, row = instances.record(connection, instance)
            jobs.create(connection, row, uid, (), "bundle", 1.0)

    dispatcher = Dispatcher(ledger, hold, do, lambda: None)
    make_job("1.5")
    with capture_logs() as events, locked_elsewhere(tmp_path / "ledger.sqlite") as give_back:
        dispatcher.start()
        wait_until(lambda: any("cannot be claimed" in event["event"] for event in events), "the lock met")
        assert done == []
        give_back()
        wait_until(lambda: done == [1], "the job done")
    make_job("1.6")
    wait_until(lambda: done == [1, 2], "and the next")
    assert dispatcher.stop(10)
    ledger.close()


@pytest.mark.peers
def test_full_while_a_report_is_written(
    new_service: Callable[..., Service], storescp: StoreSCP, disk: Callable[[int], Disk], tmp_path: Path
) -> None:
    # The bundle's copy, the ledger and the objects are a good deal less than half of it.
    small = disk(200)
    case = make_case(tmp_path / "case")
    settings = {"spool": {"directory": str(small.folder / "spool")}}
    service = new_service((storescp.aet, storescp.dicom_port), settings=settings)
    service.spool.symlink_to(small.folder / "spool")
    service.environment["MAMMOD_TEST_BATCH_S"] = "2"
    service.start()
    dcmsend(case.files, service.host, service.port, service.aet)
    service.wait_jobs("running")
    small.fill()
    wait_until(
        lambda: "job postponed" in service.log or "will be run again" in service.log, "the report not written", 60
    )
    other = make_case(tmp_path / "other", 2)
    statuses = dcmsend(other.files, service.host, service.port, service.aet)
    assert set(statuses.values()) <= {0xA700}, "or its association was refused"
    assert service.process is not None and service.process.poll() is None
    small.free()
    service.wait_jobs("done")
    assert len(storescp.files()) == 1
    assert set(dcmsend(other.files, service.host, service.port, service.aet).values()) == {0}
    service.wait_jobs("done", "done")
    assert not list(small.folder.rglob("*.tmp"))
    assert service.stop() == 0
