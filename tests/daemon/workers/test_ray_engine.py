"""Classification on a Ray cluster of two nodes: the same results; deaths cost nothing but time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from config.errors import ConfigurationError
from config.settings import Settings, Workers
from daemon.checks.ray_cluster import cluster_findings
from daemon.errors import ClassifierError, ClassifierUnavailable
from daemon.ledger import Ledger
from daemon.ledger.schema import jobs
from daemon.workers import classifier_pool as classifier_module
from daemon.workers.classifier_pool import ClassifierPool
from model.bundle import Bundle
from tests.daemon.workers.test_classifier_pool import SIZE, _bundle, _roi
from tests.support.cases import make_case
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, free_port, wait_until
from tests.support.peers.ray_cluster import ROOT, RayCluster, running_ray
from tests.support.peers.ray_engines import DIE, FAIL, SLOW
from tests.support.services import Service

LIMIT_S = 120
ENGINE = "tests.support.peers.ray_engines:on_node"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with running_ray() as running:
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return _bundle(tmp_path)


Start = Callable[..., ClassifierPool]


@pytest.fixture
def start(bundle: Bundle) -> Iterator[Start]:
    running = []

    def start(workers: dict[str, Any], engine: str = ENGINE, **limits: Any) -> ClassifierPool:
        made = ClassifierPool(bundle, Workers(max_batch=4, max_wait_ms=50, **workers), factory=engine, **limits)
        running.append(made)
        made.start()
        return made

    yield start
    for made in running:
        made.stop()


def probabilities(futures: list[Future[Any]]) -> list[float]:
    return [future.result(LIMIT_S).probability for future in futures]


def test_the_same_results_as_on_this_machine_on_both_nodes_and_a_roi_that_kills_fails_alone(
    cluster: RayCluster, start: Start
) -> None:
    local = start({"count": 1}, engine="tests.support.engine:open_engine")
    remote = start(cluster.workers, engine="tests.support.engine:open_engine")
    rois = np.random.default_rng(0).random((11, SIZE, SIZE), dtype=np.float32)
    here, there = (
        [one.submit(roi, heat_map=number % 3 == 0) for number, roi in enumerate(rois)] for one in (local, remote)
    )
    for ours, theirs in zip(here, there, strict=True):
        ours, theirs = ours.result(LIMIT_S), theirs.result(LIMIT_S)
        assert ours == theirs
        assert (ours.heat_map is None) == (theirs.heat_map is None)
        assert ours.heat_map is None or (ours.heat_map == theirs.heat_map).all()
    local.stop()
    remote.stop()

    remote = start(cluster.workers)
    slow = [remote.submit(_roi(0.25, first=SLOW)) for _ in range(8)]
    nodes = {future.result(LIMIT_S).engine for future in slow}
    assert len(nodes) == 2, "an actor on each node"

    futures = [remote.submit(_roi(0.125 * n, first={3: DIE, 5: FAIL}.get(n, 0))) for n in range(8)]
    for n in (0, 1, 2, 4, 6, 7):
        assert futures[n].result(LIMIT_S).probability == 0.125 * n
    with pytest.raises(ClassifierError, match=r"died on this ROI, 2 time\(s\): its actor on the Ray cluster is gone"):
        futures[3].result(LIMIT_S)
    with pytest.raises(ClassifierError, match="not to my taste"):
        futures[5].result(LIMIT_S)


def test_a_node_killed_in_the_middle_of_batches_costs_no_roi(cluster: RayCluster, start: Start) -> None:
    remote = start(cluster.workers)
    futures = [remote.submit(_roi(0.125 * (n % 8), first=SLOW)) for n in range(12)]
    wait_until(lambda: sum(future.running() for future in futures) >= 8, "both actors at work", LIMIT_S)
    cluster.do("kill-second")
    assert probabilities(futures) == [0.125 * (n % 8) for n in range(12)]
    survivors = {future.result(LIMIT_S).engine for future in [remote.submit(_roi(0.5)) for _ in range(8)]}
    assert len(survivors) == 1
    remote.stop()
    cluster.do("down")
    cluster.do("up")


@pytest.mark.peers
def test_the_service_with_a_cluster_that_goes_away_and_comes_back(
    cluster: RayCluster, new_service: Callable[..., Service], storescp: StoreSCP, tmp_path: Path
) -> None:
    first, second = (make_case(tmp_path / f"case-{n}", n) for n in (1, 2))
    service = new_service(
        (storescp.aet, storescp.dicom_port),
        settings={"workers": cluster.workers | {"count": 1}, "log": {"level": "debug"}},
    )
    service.start()
    dcmsend(first.files, service.host, service.port, service.aet)
    service.wait_jobs("done")
    cluster.do("down")
    assert set(dcmsend(second.files, service.host, service.port, service.aet).values()) == {0}, "still taken in"
    wait_until(lambda: "job postponed" in service.log, "the job waits", LIMIT_S)
    service.wait_jobs("done", "ready")
    cluster.do("up")
    ledger = Ledger(f"sqlite:///{service.spool / 'ledger.sqlite'}")
    with ledger.write() as connection:
        connection.execute(update(jobs).values(not_before=0))  # rather than wait half a minute for it
    ledger.close()
    service.wait_jobs("done", "done", limit_s=LIMIT_S)
    assert len(storescp.files()) == 2
    assert service.stop() == 0

    written = b"".join(path.read_bytes() for path in cluster.logs())
    for secret in ("CASE-1", "CASE-2", first.image.SOPInstanceUID, first.segmentation.SOPInstanceUID):
        assert secret.encode() not in written, "nothing that names a patient goes to the cluster"
    assert "tests.support.engine" in service.log or b"_Actor" in written, "the search had something to look through"
    assert not list(cluster.folder.rglob("usage_stats.json")), "nor does Ray tell its makers anything"


def test_a_cluster_that_is_not_there_puts_off_and_is_named(start: Start) -> None:
    address = f"127.0.0.1:{free_port()}"
    remote = start({"backend": "ray", "ray_address": address})
    assert remote.trouble is not None and f"Ray cluster at {address} cannot be reached" in remote.trouble
    began = time.monotonic()
    futures = [remote.submit(_roi(0.5)) for _ in range(40)]
    for future in futures:
        with pytest.raises(ClassifierUnavailable, match="cannot be reached"):
            future.result(LIMIT_S)
    assert time.monotonic() - began < classifier_module.CLUSTER_RETRY_S + 30, "not each batch waits for the cluster"


def test_what_the_cluster_lacks_is_named(cluster: RayCluster, start: Start) -> None:
    remote = start(cluster.workers | {"ray_gpus": 4, "count": 1})
    assert remote.trouble is not None and "has 2 GPU and workers.ray_gpus asks for 4" in remote.trouble


def test_check_has_an_actor_made_and_says_why_there_is_none(
    cluster: RayCluster, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ClassifierPool.__init__.__kwdefaults__, "factory", ENGINE)
    (said,) = cluster_findings(Settings(workers=cluster.workers), bundle)
    assert said.good and f"an actor on the cluster at {cluster.address} opens the bundle" in said.text
    nowhere = cluster.workers | {"ray_address": f"127.0.0.1:{free_port()}"}
    (said,) = cluster_findings(Settings(workers=nowhere), bundle)
    assert not said.good and "cannot be reached" in said.text and "workers.ray_address" in said.text
    assert list(cluster_findings(Settings(), bundle)) == []


def test_ray_is_told_to_tell_nobody(tmp_path: Path) -> None:
    """What is set when Ray is imported, and how it is started; by a stand-in, as Ray does not show it."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(
        "import os\n"
        "assert os.environ['RAY_USAGE_STATS_ENABLED'] == '0', 'usage statistics'\n"
        "def init(**arguments):\n"
        "    assert arguments['log_to_driver'] is False\n"
        "    assert 'runtime_env' not in arguments\n"
        "    print('begun')\n"
    )
    code = (
        "import socket; head = socket.create_server(('127.0.0.1', 0))\n"
        "from daemon.workers.ray_engine import Place, _connect\n"
        "_connect(Place(f'127.0.0.1:{head.getsockname()[1]}', 0, 1))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("begun\n", 0), done.stderr


def test_the_daemon_itself_never_imports_ray() -> None:
    code = (
        "import sys; from daemon.workers.classifier_pool import ClassifierPool, _on_ray; from config.settings import Workers\n"
        "_on_ray('a:b', (), Workers(backend='ray', ray_address='h:1'))\n"
        "import daemon.service, daemon.checks.run; assert 'ray' not in sys.modules and 's3fs' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_extra_it_says_which_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"install mammod\[ray\]"):
        ClassifierPool(bundle, Workers(backend="ray", ray_address="127.0.0.1:6379"))


def test_settings_without_an_address_are_refused() -> None:
    with pytest.raises(ValueError, match="ray_address"):
        Workers(backend="ray")
    with pytest.raises(ValueError):
        Workers(backend="ray", ray_address="ray://host:10001")
