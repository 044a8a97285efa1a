"""The classifier's processes: batches, deaths, hangs, the end. Most run an engine without a framework."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.errors import ConfigurationError
from config.settings import Workers
from daemon.errors import ClassifierError, ClassifierUnavailable, DeadlyRoi
from daemon.workers.classifier_pool import ClassifierPool, process_environments
from model.bundle import Architecture, Bundle, Manifest
from model.crop import CropPolicy
from model.engines import hardware
from model.normalise import NormalisationPolicy
from tests.support.fake_engines import BE_KILLED, DIE, DIE_ONCE, FAIL, HANG, NO_HEAT_MAP, NOT_A_NUMBER
from tests.support.repository import ROOT

SIZE = 32
LIMIT_S = 60

Start = Callable[..., ClassifierPool]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return _bundle(tmp_path)


@pytest.fixture
def start(bundle: Bundle) -> Iterator[Start]:
    running = []

    def start(
        engine: str = "fake", count: int = 1, max_batch: int = 8, max_wait_ms: float = 50, **limits: Any
    ) -> ClassifierPool:
        workers = Workers(classifiers=count, max_batch=max_batch, max_wait_ms=max_wait_ms)
        classifier = ClassifierPool(bundle, workers, factory=f"tests.support.fake_engines:{engine}", **limits)
        running.append(classifier)
        classifier.start()
        return classifier

    yield start
    for classifier in running:
        classifier.stop()


def test_rois_are_answered_in_batches(start: Start, bundle: Bundle) -> None:
    classifier = start(max_wait_ms=2000)
    values = np.linspace(0, 0.9, 11).astype(np.float32).tolist()
    futures = [classifier.submit(_roi(value)) for value in values]
    predictions = [future.result(LIMIT_S) for future in futures]
    assert [prediction.probability for prediction in predictions] == values
    assert [prediction.malignant for prediction in predictions] == [value >= 0.5 for value in values]
    assert {(prediction.engine, prediction.bundle) for prediction in predictions} == {("fake", bundle.digest)}
    sizes = _batches(bundle)
    assert sum(sizes) == 11
    assert max(sizes) == 8  # max_batch, and no ROI alone although eight were waiting


def test_a_heat_map_is_made_for_who_asked_and_for_nobody_else(start: Start, bundle: Bundle) -> None:
    classifier = start(max_wait_ms=2000)
    values = [0.125 * n for n in range(8)]
    futures = [classifier.submit(_roi(value), heat_map=n in (2, 5)) for n, value in enumerate(values)]
    predictions = [future.result(LIMIT_S) for future in futures]
    assert [prediction.probability for prediction in predictions] == values
    for n, prediction in enumerate(predictions):
        if n in (2, 5):
            assert prediction.heat_map is not None and (prediction.heat_map == values[n]).all()
            assert prediction.heat_map.shape == (2, 2)
        else:
            assert prediction.heat_map is None
    assert (bundle.path / "heat-maps").read_text() == "2\n"


def test_an_engine_without_heat_maps_still_classifies(start: Start) -> None:
    prediction = start().submit(_roi(0.5, first=NO_HEAT_MAP), heat_map=True).result(LIMIT_S)
    assert (prediction.probability, prediction.heat_map) == (0.5, None)


def test_one_roi_does_not_wait_for_a_full_batch(start: Start) -> None:
    classifier = start(max_wait_ms=10)
    begun = time.monotonic()
    classifier.submit(_roi(0.2)).result(LIMIT_S)
    assert time.monotonic() - begun < 5


def test_a_process_that_dies_is_replaced_and_its_rois_are_done_again(start: Start) -> None:
    classifier = start()
    (before,) = classifier.pids
    futures = [classifier.submit(_roi(0.1 * n, first=DIE_ONCE if n == 3 else 0)) for n in range(8)]
    assert [future.result(LIMIT_S).probability for future in futures] == pytest.approx([0.1 * n for n in range(8)])
    (after,) = classifier.pids
    assert before != after


def test_a_roi_that_kills_twice_fails_alone(start: Start) -> None:
    classifier = start(max_wait_ms=1000)
    futures = [classifier.submit(_roi(0.1 * n, first=DIE if n == 3 else 0)) for n in range(8)]
    wait(futures, LIMIT_S)
    with pytest.raises(DeadlyRoi, match=r"died on this ROI, 2 time"):
        futures[3].result(0)
    assert [future.exception(0) for future in futures[:3] + futures[4:]] == [None] * 7
    assert classifier.submit(_roi(0.4)).result(LIMIT_S).probability == pytest.approx(0.4)


def test_a_roi_is_not_guilty_of_what_is_killed_from_outside(start: Start) -> None:
    """It fails, and its job is put off: a deadly ROI's would be quarantined."""
    failed = start().submit(_roi(0.3, first=BE_KILLED)).exception(LIMIT_S)
    assert type(failed) is ClassifierUnavailable and "ended (-9)" in str(failed)


def test_a_hang_is_ended_like_a_death(start: Start) -> None:
    classifier = start(hang_limit_s=1)
    futures = [classifier.submit(_roi(0.3, first=HANG)), classifier.submit(_roi(0.3))]
    with pytest.raises(ClassifierError, match="no answer within 1 s"):
        futures[0].result(LIMIT_S)
    assert futures[1].result(LIMIT_S).probability == pytest.approx(0.3)


def test_a_process_stopped_from_outside_is_ended_too(start: Start) -> None:
    """SIGSTOP also stops the reading of a batch larger than the pipe."""
    classifier = start(hang_limit_s=1)
    (pid,) = classifier.pids
    os.kill(pid, signal.SIGSTOP)
    futures = [classifier.submit(_roi(0.3)) for _ in range(200)]
    assert {round(future.result(LIMIT_S).probability, 3) for future in futures} == {0.3}


def test_a_death_between_batches_counts_against_no_roi(start: Start) -> None:
    classifier = start()
    for _ in range(3):
        (pid,) = classifier.pids
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not classifier.pids)
        assert classifier.submit(_roi(0.6)).result(LIMIT_S).malignant


def test_what_the_engine_refuses_fails_alone_without_a_death(start: Start) -> None:
    classifier = start(max_wait_ms=1000)
    pids = classifier.pids
    futures = [classifier.submit(_roi(0.3, first=first)) for first in (0, FAIL, NOT_A_NUMBER, 0)]
    wait(futures, LIMIT_S)
    assert [type(future.exception(0)) for future in futures] == [
        type(None),
        ClassifierError,
        ClassifierError,
        type(None),
    ]
    assert "not to my taste" in str(futures[1].exception(0))
    assert "no probability" in str(futures[2].exception(0))
    assert classifier.pids == pids


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((SIZE, SIZE + 1)), np.zeros(SIZE), np.full((SIZE, SIZE), np.nan)],
    ids=["not square", "no image", "not numbers"],
)
def test_rois_that_are_none_are_refused_at_once(start: Start, pixels: np.ndarray) -> None:
    with pytest.raises(ClassifierError, match=r"finite values of shape \(32, 32\)"):
        start().submit(pixels)


def test_several_processes_share_the_work(start: Start) -> None:
    classifier = start(count=2, max_batch=1, hang_limit_s=3)
    assert len(set(classifier.pids)) == 2
    busy = classifier.submit(_roi(0.2, first=HANG))
    assert classifier.submit(_roi(0.3)).result(LIMIT_S).probability == pytest.approx(0.3)
    assert not busy.done()


@pytest.mark.parametrize(
    ("engine", "limit_s", "message"),
    [
        ("refuses", 60, "cannot start: RuntimeError: no such thing as this bundle"),
        ("dies_at_start", 60, r"cannot start: its process ended \(7\)"),
        ("never_ready", 3, "cannot start: its process gave no answer within 3 s"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    start: Start, engine: str, limit_s: float, message: str, bundle: Bundle
) -> None:
    classifier = ClassifierPool(
        bundle, Workers(classifiers=1), factory=f"tests.support.fake_engines:{engine}", start_limit_s=limit_s
    )
    with pytest.raises(ClassifierError, match=message):
        classifier.start()
    assert classifier.pids == ()
    with pytest.raises(ClassifierError, match="not running"):
        classifier.submit(_roi(0.1))


def test_rois_fail_where_the_process_cannot_be_started_again(start: Start, bundle: Bundle) -> None:
    classifier = start("starts_once")
    (pid,) = classifier.pids
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not classifier.pids)
    futures = [classifier.submit(_roi(0.5)) for _ in range(3)]
    for future in futures:
        with pytest.raises(ClassifierError, match="cannot start: FileExistsError"):
            future.result(LIMIT_S)
    # As soon as it can, it does.
    (bundle.path / "started").unlink()
    assert classifier.submit(_roi(0.5)).result(LIMIT_S).malignant


def test_stop_finishes_what_is_under_way_and_cancels_the_rest(start: Start) -> None:
    classifier = start(max_batch=1, hang_limit_s=2)
    pids = classifier.pids
    under_way = classifier.submit(_roi(0.5, first=HANG))
    _until(under_way.running)
    waiting: list[Future[Any]] = [classifier.submit(_roi(0.5)) for _ in range(4)]
    classifier.stop()
    with pytest.raises(ClassifierError, match="died on this ROI, 1 time"):
        under_way.result(0)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(0)
    assert not any(_alive(pid) for pid in pids)
    assert classifier.pids == ()
    with pytest.raises(ClassifierError, match="not running"):
        classifier.submit(_roi(0.5))
    classifier.stop()


def test_a_stop_whose_limit_has_passed_puts_everything_away_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the thread that reads from the pipe closes it: two that close it at once make each other fail."""
    closed_by: list[str] = []
    close = Connection._close  # type: ignore[attr-defined]

    def note(connection: Connection) -> None:
        closed_by.append(threading.current_thread().name)
        time.sleep(0.05)  # the other one's turn
        close(connection)

    classifier = start(max_batch=1)
    (pid,) = classifier.pids
    under_way = classifier.submit(_roi(0.5, first=HANG))
    _until(under_way.running)
    monkeypatch.setattr(Connection, "_close", note)
    classifier.stop(0)
    assert closed_by == ["classifier-0"]
    assert not _alive(pid)
    with pytest.raises(ClassifierError, match="died on this ROI, 1 time"):
        under_way.result(0)
    assert "classifier-0" not in {thread.name for thread in threading.enumerate()}


def test_signals_for_the_daemon_do_not_end_the_process(start: Start) -> None:
    classifier = start()
    pids = classifier.pids
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pids[0], number)
    assert classifier.submit(_roi(0.5)).result(LIMIT_S).malignant
    assert classifier.pids == pids


def test_a_burst_waits_outside_and_a_stop_lets_it_go(start: Start) -> None:
    """The queue holds four batches per process; who submits more waits for room, or for the end."""
    classifier = start(max_batch=1, hang_limit_s=30)
    under_way = classifier.submit(_roi(0.5, first=HANG))
    _until(under_way.running)
    submitted: list[Future[Any]] = []
    ends: list[Exception] = []

    def burst() -> None:
        try:
            for _ in range(100):
                submitted.append(classifier.submit(_roi(0.5)))
        except ClassifierError as error:
            ends.append(error)

    bursting = threading.Thread(target=burst)
    bursting.start()
    _until(lambda: len(submitted) >= 4)
    bursting.join(0.5)
    assert bursting.is_alive() and len(submitted) == 4
    stop = threading.Thread(target=classifier.stop, kwargs={"limit_s": 1})
    stop.start()
    bursting.join(LIMIT_S)
    stop.join(LIMIT_S)
    assert len(submitted) == 4 and "not running" in str(ends[0])
    assert classifier.pids == ()


def test_room_in_the_queue_is_given_back(start: Start) -> None:
    classifier = start(max_batch=2)
    futures = [classifier.submit(_roi(0.25)) for _ in range(100)]
    assert {future.result(LIMIT_S).probability for future in futures} == {0.25}


def test_rois_go_over_in_memory_that_both_sides_map(start: Start) -> None:
    """The pipe carries no pixels, and nothing is left in the file system."""
    classifier = start()
    (pid,) = classifier.pids
    sent: list[Any] = []
    child = classifier._processes[0]._process._child
    assert child is not None
    pipe = child.pipe
    real = pipe.send
    pipe.send = lambda message: (sent.append(message), real(message))[1]  # type: ignore[method-assign]
    futures = [classifier.submit(_roi(0.125 * n)) for n in range(8)]
    assert [future.result(LIMIT_S).probability for future in futures] == [0.125 * n for n in range(8)]
    assert sent and all(isinstance(message, list) and set(message) == {False} for message in sent)
    ours, theirs = (Path(f"/proc/{number}/maps").read_text() for number in (os.getpid(), pid))
    shared = {line.split()[4] for line in ours.splitlines() if "(deleted)" in line} - {"0"}
    assert shared & {line.split()[4] for line in theirs.splitlines() if "(deleted)" in line}  # the same inode


def test_a_gpu_each_and_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in process_environments(0)] == ["0", "1", "10"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in process_environments(4)] == ["0", "1", "10", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in process_environments(0)] == ["3", "5"]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert len(process_environments(0)) == 1 and "CUDA_VISIBLE_DEVICES" not in process_environments(0)[0]


def test_it_is_known_which_engine_runs_and_why(start: Start) -> None:
    classifier = start()
    assert (classifier.engine, classifier.why) == ("fake", "a test wants it")


def test_an_engine_that_the_settings_name_and_that_is_refused_is_a_matter_of_configuration(bundle: Bundle) -> None:
    classifier = ClassifierPool(bundle, Workers(), factory="tests.support.fake_engines:not_as_set")
    with pytest.raises(ConfigurationError, match=r"differs by 0\.4"):
        classifier.start()
    assert classifier.pids == ()


PROGRAM = """
import sys, time, pathlib
from daemon.workers.classifier_pool import ClassifierPool
from config.settings import Workers
from tests.daemon.workers.test_classifier_pool import _bundle, _roi
from tests.support.fake_engines import HANG

if __name__ == "__main__":
    classifier = ClassifierPool(_bundle(pathlib.Path(sys.argv[1])), Workers(), factory="tests.support.fake_engines:fake")
    classifier.start()
    future = classifier.submit(_roi(0.5, first=HANG if sys.argv[2] == "busy" else 0))
    if sys.argv[2] == "idle":
        future.result(60)
    else:
        while not future.running():
            time.sleep(0.01)
    print(*classifier.pids, flush=True)
    assert "tensorflow" not in sys.modules and "keras" not in sys.modules
    if sys.argv[3] == "wait":
        time.sleep(1000)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_process_ends_when_the_daemon_is_killed(state: str, tmp_path: Path) -> None:
    daemon = _daemon(tmp_path, state, "wait")
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    assert _alive(pid)
    daemon.kill()
    daemon.wait(LIMIT_S)
    _until(lambda: not _alive(pid))


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_daemon_that_ends_without_stopping_does_not_wait_for_it(state: str, tmp_path: Path) -> None:
    daemon = _daemon(tmp_path, state, "end")
    out, _ = daemon.communicate(timeout=LIMIT_S)
    assert daemon.returncode == 0
    _until(lambda: not _alive(int(out.split()[0])))


def test_with_tensorflow_it_answers_as_the_network_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.support.bundles import small_bundle

    bundle = small_bundle(tmp_path / "b", threshold=0.4, trained=False)
    rois = np.random.default_rng(0).random((3, 75, 75), dtype=np.float32)
    expected = np.asarray(bundle.network()(rois[..., None], training=False))[:, 0]
    classifier = ClassifierPool(bundle, Workers(max_batch=2), "tensorflow")
    capfd.readouterr()
    classifier.start()
    assert capfd.readouterr().err == ""  # none of TensorFlow's start-up lines
    try:
        predictions = [future.result(LIMIT_S) for future in [classifier.submit(roi) for roi in rois]]
    finally:
        classifier.stop()
    np.testing.assert_allclose([prediction.probability for prediction in predictions], expected, atol=1e-5)
    assert {prediction.engine for prediction in predictions} == {"tensorflow-float32"}
    assert all(prediction.malignant == (prediction.probability >= 0.4) for prediction in predictions)
    # A bundle that was changed on disk is not the one whose reports are being written.
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"threshold": 0.4', '"threshold": 0.6'))
    with pytest.raises(ClassifierError, match="changed since the service started"):
        classifier.start()


def _bundle(path: Path) -> Bundle:
    """A bundle without weights: the fake engines need its folder and facts only."""
    manifest = Manifest(
        name="fake",
        version="1",
        architecture=Architecture(network="xception_c", input_size=SIZE),
        crop=CropPolicy(size=SIZE),
        normalisation=NormalisationPolicy(),
        trained=False,
        licence="Apache-2.0",
        format=1,
        parameters=0,
        weights_sha256="0" * 64,
    )
    return Bundle(path, manifest, "d1" * 32)


def _roi(value: float, first: float = 0) -> np.ndarray:
    pixels = np.zeros((SIZE, SIZE), np.float32)
    pixels[0, 0], pixels[-1, -1] = first, value
    return pixels


def _batches(bundle: Bundle) -> list[int]:
    return [int(line) for line in (bundle.path / "batches").read_text().split()]


def _daemon(folder: Path, state: str, end: str) -> subprocess.Popen[str]:
    """A program in the daemon's place. A file, for a spawned process reads the main program again."""
    program = folder / "daemon_in_its_place.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, program, folder, state, end], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
    )


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
