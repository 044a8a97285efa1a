"""Several services share one PostgreSQL ledger and one spool: what one leaves another takes over, and nothing is done twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from daemon.ledger import Ledger, nodes
from tests.peers.archives import StoreSCP
from tests.peers.programs import dcmsend, wait_until
from tests.service.fixtures import make_case
from tests.service.running import Service

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


def named(report: Path) -> set[str]:
    return {
        str(element.value) for element in dcmread(report).iterall() if element.keyword == "ReferencedSOPInstanceUID"
    }


def test_two_nodes_start_at_once_and_one_is_killed_in_mid_work(
    new_node: Callable[..., Service], storescp: StoreSCP, tmp_path: Path
) -> None:
    first, second = (new_node(name, (storescp.aet, storescp.dicom_port)) for name in ("first", "second"))
    for service in (first, second):
        # So slow that one node cannot do them all before the other has looked.
        service.environment["MAMMOD_TEST_BATCH_S"] = "2"
        service.start(wait=False)  # on an empty database, which one of them migrates
    for service in (first, second):
        service.wait_ready(service.folder / "service-01.log")
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
    about = Counter(uid for report in reports.values() for uid in named(report))
    assert {about[str(case.segmentation.SOPInstanceUID)] for case in cases} == {1}, "exactly one report each"
    assert len(reports) == len(cases) == len(second.outbox())
    assert second.stop() == 0
    assert known_nodes(second) == 0
    assert second_spool_files(second) == {row.path for row in (*second.instances(), *second.outbox())}


def node_ids(service: Service) -> set[str]:
    """Of a service, as its log names them."""
    import json

    found = set()
    for line in service.log.splitlines():
        if line.startswith("{") and (node := json.loads(line).get("node")):
            found.add(node)
    return found


def second_spool_files(service: Service) -> set[str]:
    spool = service.folder.parent / "shared" / "spool"
    files = (path for path in spool.rglob("*") if path.is_file() and not path.is_relative_to(spool / "bundle"))
    return {str(path.relative_to(spool)) for path in files}
