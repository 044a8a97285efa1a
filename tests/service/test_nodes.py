"""Several services share one PostgreSQL ledger and one spool: what one leaves another takes over, and
nothing is done twice.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import evt
from sqlalchemy.engine import make_url

from daemon.ledger import Ledger, nodes
from tests.support.archive_stubs import stub
from tests.support.cases import make_case
from tests.support.kills import check_deep
from tests.support.peers.archives import StoreSCP
from tests.support.peers.postgresql import PASSWORD, PostgreSQL
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.persistent_sender import PersistentSender
from tests.support.services import Service

LEASE_S = 3
LIMIT_S = 180

pytestmark = pytest.mark.peers


@pytest.fixture
def new_node(new_service: Callable[..., Service], postgresql_url: str, tmp_path: Path) -> Callable[..., Service]:
    """Makes services that share a ledger and a spool: `new_node(name, archive)`."""
    (tmp_path / "shared").mkdir()

    def make(name: str, archive: tuple[str, int], url: str = postgresql_url, **ledger: object) -> Service:
        settings = {
            "ledger": {"url": url, "lease_s": LEASE_S, **ledger},
            "spool": {"directory": str(tmp_path / "shared" / "spool"), "min_free": "1 MB"},
            "log": {"level": "debug"},
        }
        return new_service(archive, name=name, settings=settings)

    return make


def known_nodes(service: Service) -> int:
    ledger = Ledger(service.ledger_url)
    try:
        with ledger.read() as connection:
            return len(nodes.all(connection))
    finally:
        ledger.close()


def named(report: Dataset) -> set[str]:
    return {str(element.value) for element in report.iterall() if element.keyword == "ReferencedSOPInstanceUID"}


def test_two_nodes_start_at_once_and_one_is_killed_in_mid_work(
    new_node: Callable[..., Service], storescp: StoreSCP, tmp_path: Path
) -> None:
    first, second = (new_node(name, (storescp.aet, storescp.dicom_port)) for name in ("first", "second"))
    start_together(first, second, batch_s=2)  # so slow that one node cannot do them all before the other has looked
    cases = [make_case(tmp_path / "cases", number) for number in range(1, 13)]
    # Each lesion object comes to another node than its image.
    assert set(dcmsend([case.segmentation_path for case in cases], first.host, first.port, first.aet).values()) == {0}
    assert set(dcmsend([case.image_path for case in cases], second.host, second.port, second.aet).values()) == {0}

    def first_is_at_work() -> bool:
        owners = {job.owner for job in first.jobs() if job.state == "running"}
        return any(first_id in owners for first_id in node_ids(first))

    wait_until(first_is_at_work, "a job that runs on the first node", LIMIT_S)
    first.kill()
    killed = time.monotonic()
    wait_until(lambda: known_nodes(second) == 1, "the dead node taken over", LIMIT_S)
    print(f"taken over {time.monotonic() - killed:.1f} s after the kill, with a lease of {LEASE_S} s")
    second.wait_jobs(*["done"] * len(cases), limit_s=LIMIT_S)
    reports = storescp.files()
    about = Counter(uid for report in reports.values() for uid in named(dcmread(report)))
    assert {about[str(case.segmentation.SOPInstanceUID)] for case in cases} == {1}, "exactly one report each"
    assert len(reports) == len(cases) == len(second.outbox())
    assert second.stop() == 0
    assert known_nodes(second) == 0
    assert shared_files(second) == {row.path for row in (*second.instances(), *second.outbox())}


def start_together(*services: Service, batch_s: float) -> None:
    """On an empty database, which one of them migrates; a batch of ROIs takes each `batch_s` seconds."""
    for service in services:
        service.environment["MAMMOD_TEST_BATCH_S"] = f"{batch_s:g}"
        service.start(wait=False)
    for service in services:
        service.wait_ready(service.folder / "service-01.log")


def node_ids(service: Service) -> set[str]:
    """Of a service, as its log names them."""
    import json

    found = set()
    for line in service.log.splitlines():
        if line.startswith("{") and (node := json.loads(line).get("node")):
            found.add(node)
    return found


def shared_files(service: Service) -> set[str]:
    spool = service.folder.parent / "shared" / "spool"
    files = (path for path in spool.rglob("*") if path.is_file() and not path.is_relative_to(spool / "bundle"))
    return {str(path.relative_to(spool)) for path in files}


def signal_to(service: Service, number: signal.Signals) -> None:
    assert service.process is not None
    service.process.send_signal(number)


def is_of(service: Service, owner: str | None) -> bool:
    """Whether a row's owner is this service, under whichever of its ids."""
    process = (owner or "").partition("-")[0]
    return process in {node_id.partition("-")[0] for node_id in node_ids(service)}


class Archive:
    """Takes everything and keeps the reports; while `held` is set, the answer to the next one waits until
    `go_on`.
    """

    def __init__(self) -> None:
        self.reports: list[Dataset] = []
        self.held = False
        self.go_on = threading.Event()

    def on_store(self, event: evt.Event) -> int:
        waits, self.held = self.held, False
        self.reports.append(event.dataset)
        if waits:
            assert self.go_on.wait(LIMIT_S)
        return 0x0000

    def named(self, uid: str) -> list[str]:
        """The SOP Instance UIDs of the reports on a lesion object, each as often as it was sent."""
        return [str(report.SOPInstanceUID) for report in self.reports if uid in named(report)]


@pytest.mark.timeout(600)  # two services, two leases
def test_a_node_frozen_past_its_lease_is_taken_over_and_counts_for_nothing_when_it_wakes(
    new_node: Callable[..., Service], tmp_path: Path
) -> None:
    archive = Archive()
    with stub(archive.on_store) as port:
        first, second = (new_node(name, ("STUB", port)) for name in ("first", "second"))
        start_together(first, second, batch_s=2)
        cases = [make_case(tmp_path / "cases", number) for number in range(1, 14)]
        *cases, last = cases
        # All at once: one after the other on a busy machine, they would be done before the last is sent.
        files = [path for case in cases for path in case.files]
        assert set(dcmsend(files, second.host, second.port, second.aet).values()) == {0}

        # In the middle of jobs.
        wait_until(lambda: any(is_of(first, job.owner) for job in first.jobs()), "a job of the first node", LIMIT_S)
        signal_to(first, signal.SIGSTOP)
        held = {job.id for job in second.jobs() if is_of(first, job.owner)}
        assert held, "it was frozen over its work"
        wait_until(lambda: known_nodes(second) == 1, "the frozen node taken over", LIMIT_S)
        second.wait_jobs(*["done"] * len(cases), limit_s=LIMIT_S)
        again = {job.id: job.attempts for job in second.jobs()}
        assert all(again[job] >= 2 for job in held), "begun once more, by the other node"
        signal_to(first, signal.SIGCONT)
        wait_until(lambda: "node lease expired" in first.log, "the waking node sees it", LIMIT_S)
        wait_until(lambda: known_nodes(second) == 2, "and joins again", LIMIT_S)
        wait_until(lambda: first.log.count("result dropped") >= len(held), "its late work dropped", LIMIT_S)
        for case in cases:
            assert len(archive.named(str(case.segmentation.SOPInstanceUID))) == 1, "exactly one report, sent once"

        # In the middle of sending: the archive has the report, and the node does not hear so.
        archive.held = True
        assert set(dcmsend(last.files, first.host, first.port, first.aet).values()) == {0}
        wait_until(lambda: len(archive.reports) == len(cases) + 1, "the last report on its way", LIMIT_S)
        (item,) = [row for row in second.outbox() if row.source_uid == last.segmentation.SOPInstanceUID]
        assert (is_of(first, item.owner), is_of(second, item.owner)) in ((True, False), (False, True))
        frozen, awake = (first, second) if is_of(first, item.owner) else (second, first)
        before = frozen.log.count("node lease expired")
        signal_to(frozen, signal.SIGSTOP)
        wait_until(lambda: len(archive.reports) == len(cases) + 2, "the report sent by the other node", LIMIT_S)
        awake.wait_jobs(*["done"] * (len(cases) + 1), limit_s=LIMIT_S)
        archive.go_on.set()
        signal_to(frozen, signal.SIGCONT)
        wait_until(lambda: frozen.log.count("node lease expired") > before, "it sees it", LIMIT_S)
        wait_until(lambda: known_nodes(awake) == 2, "both nodes", LIMIT_S)
        assert len(set(archive.named(str(last.segmentation.SOPInstanceUID)))) == 1, "one report, sent twice as the same"
        for service in (first, second):
            assert service.stop() == 0
        rows = first.outbox()
        assert [(row.state, row.attempts) for row in rows] == [("stored", 1)] * (len(cases) + 1)
        assert {str(report.SOPInstanceUID) for report in archive.reports} == {row.sop_instance_uid for row in rows}
        assert shared_files(first) == {row.path for row in (*first.instances(), *rows)}
        assert check_deep(first).returncode == 0


@pytest.mark.timeout(600)
def test_postgresql_restarted_and_crashed_under_load(
    new_node: Callable[..., Service],
    postgresql: PostgreSQL,
    postgresql_url: str,
    storescp: StoreSCP,
    tmp_path: Path,
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    archive = (storescp.aet, storescp.dicom_port)
    over_tcp = postgresql.url_over_tcp(str(make_url(postgresql_url).database))
    first, second = new_node("first", archive), new_node("second", archive, over_tcp, password_file=str(password))
    start_together(first, second, batch_s=0.2)
    cases = [make_case(tmp_path / "cases", number) for number in range(1, 25)]
    files = [path for case in cases for path in case.files]
    senders = [PersistentSender(service.host, service.port, service.aet) for service in (first, second)]

    def accepted() -> int:
        return sum(len(sender.accepted) for sender in senders)

    def refused() -> int:
        return sum(sender.statuses.get(0xA700, 0) for sender in senders)

    try:
        for part, how in enumerate((signal.SIGINT, signal.SIGQUIT)):
            had, refusals = accepted(), refused()
            for number, path in enumerate(files[part * len(files) // 2 : (part + 1) * len(files) // 2]):
                senders[number % 2].send(path)
            wait_until(lambda had=had: accepted() >= had + 6, "some objects accepted", LIMIT_S)
            postgresql.stop(how)
            wait_until(lambda had=refusals: refused() > had, "senders are told to come back", LIMIT_S)
            postgresql.start()
        wait_until(lambda: accepted() == len(files), "every object accepted", LIMIT_S)
    finally:
        for sender in senders:
            sender.stop()
    first.wait_jobs(*["done"] * len(cases), limit_s=LIMIT_S)
    assert all(set(sender.statuses) <= {0x0000, 0xA700, None} for sender in senders), "nothing else is answered"
    for sender in senders:
        assert set(sender.accepted) <= {row.sop_instance_uid for row in first.instances()}
    reports = storescp.files()
    about = Counter(uid for report in reports.values() for uid in named(dcmread(report)))
    assert {about[str(case.segmentation.SOPInstanceUID)] for case in cases} == {1}, "exactly one report each"
    assert len(reports) == len(cases) == len(first.outbox())
    wait_until(lambda: known_nodes(first) == 2, "both nodes live", LIMIT_S)
    for service in (first, second):
        assert service.stop() == 0
        assert PASSWORD not in service.log
    assert known_nodes(first) == 0
    assert check_deep(first).returncode == 0
