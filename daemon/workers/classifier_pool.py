"""The pool of classifier processes: the service never imports a framework, nor dies with one.

ROIs from any thread wait in one queue of limited length. One thread per process takes micro-batches from it.
A process that dies or hangs is replaced and its ROIs are classified again one by one. A ROI that was in hand
at two deaths fails alone: for good, or only for now if the last death was by a SIGKILL from outside.

With backend "ray" each process has its engine on a cluster (`daemon.workers.ray_engine`). A cluster may be
away for long and come back: it is tried again and again, and meanwhile ROIs fail with ClassifierUnavailable,
so that their jobs wait.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from config.errors import ConfigurationError
from config.settings import Workers
from daemon.errors import ClassifierError, ClassifierUnavailable, DeadlyRoi
from daemon.events import bus
from daemon.system.backoff import Backoff
from daemon.system.supervisor import NO_BACKOFF
from daemon.workers.classifier_process import THREADS_VARIABLE, ClassifierDied, ClassifierProcess
from model.bundle import Bundle
from model.engines.hardware import gpus
from model.prediction import Prediction

log = structlog.get_logger(__name__)

MAX_DEATHS = 2  # of processes with the same ROI in hand, which is then to blame
MAX_WAITING_BATCHES = 4  # for each process: enough to keep it busy, and all the memory that a burst takes
CLUSTER_RETRY_S = 10.0  # until a cluster that was away is tried again
ABANDON_LIMIT_S = 5.0  # for a thread to see that its process was killed


@dataclass(eq=False)
class _Item:
    """One ROI in the queue, and how many processes died with it in hand."""

    pixels: np.ndarray
    heat_map: bool
    future: Future[Prediction] = field(default_factory=Future)
    deaths: int = 0


class ClassifierPool:
    """Classifies ROIs with a bundle's engine in `workers.classifiers` processes (0: one, or one per GPU).

    An engine keeps what it converted in the folder `cache` (see `model.engines.load_engine`). `factory`
    ("module:function", called in the process) makes the engine; tests pass their own. `start_limit_s` and
    `hang_limit_s` bound the warm-up and one batch. Thread-safe.

    Raises:
        ConfigurationError: the backend needs an extra that is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        workers: Workers,
        engine: str = "auto",
        *,
        cache: Path | None = None,
        factory: str = "daemon.workers.classifier_process:open_engine",
        start_limit_s: float = 300,
        hang_limit_s: float = 120,
    ) -> None:
        self._size = bundle.manifest.architecture.input_size
        arguments: tuple[Any, ...] = (str(bundle.path), bundle.digest, engine, workers.max_batch)
        environments = process_environments(workers.classifiers)
        self._is_remote = workers.backend == "ray"
        if self._is_remote:
            factory, arguments, environments = _on_ray(factory, arguments, workers)
        else:
            arguments = (*arguments, cache)
        self._processes = [
            ClassifierProcess(
                factory=factory,
                arguments=arguments,
                environment=environment,
                max_batch=workers.max_batch,
                roi_size=self._size,
                start_limit_s=start_limit_s,
                hang_limit_s=hang_limit_s,
                backoff=Backoff(CLUSTER_RETRY_S, CLUSTER_RETRY_S) if self._is_remote else NO_BACKOFF,
            )
            for environment in environments
        ]
        self._max_batch, self._max_wait_s = workers.max_batch, workers.max_wait_ms / 1000
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._max_waiting = MAX_WAITING_BATCHES * workers.max_batch * len(self._processes)
        self._waiting = 0
        self._threads: list[threading.Thread] = []
        self._is_open = False
        self._gate = threading.Condition()
        self._stopping = threading.Event()

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the ids of the live processes."""
        return tuple(pid for process in self._processes if (pid := process.pid) is not None)

    @property
    def expected(self) -> int:
        """Return how many processes there should be; one that died is restarted when the next ROI comes."""
        return len(self._processes)

    @property
    def waiting(self) -> int:
        """Return the number of ROIs that no process has taken yet."""
        return self._queue.qsize()

    @property
    def engine(self) -> str:
        """Return the name of the engine; "" before the start."""
        return self._processes[0].engine.name

    @property
    def why(self) -> str:
        """Return why this engine was chosen, and what its trial found; "" before the start."""
        return self._processes[0].engine.why

    @property
    def trouble(self) -> str | None:
        """Return why no process can be started if none is alive and the last attempt failed, else None."""
        if self.pids:
            return None
        return next((process.trouble for process in self._processes if process.trouble), None)

    def start(self) -> None:
        """Start the processes and return when every engine is warm, or known to be on a cluster that is away.

        Raises:
            ClassifierError: a process died or could not open the bundle; the message says why, and no process
                is left running.
            ConfigurationError: the engine that the settings name is not installed or did not pass its trial.
        """
        started: list[Future[None]] = [Future() for _ in self._processes]
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name=f"classifier-{number}", daemon=True)
            for number, pair in enumerate(zip(self._processes, started, strict=True))
        ]
        self._queue, self._waiting = queue.SimpleQueue(), 0
        self._stopping.clear()
        self._is_open = True
        # Before multiprocessing's own exit handler, which would wait for processes that ignore SIGTERM.
        atexit.register(self._abandon)
        for thread in self._threads:
            thread.start()
        try:
            for future in started:
                future.result()
        except (ClassifierError, ConfigurationError):
            self.stop()
            raise

    def submit(self, pixels: np.ndarray, *, heat_map: bool = False) -> Future[Prediction]:
        """Queue one ROI, float (size, size) in 0..1; its future may fail with ClassifierError.

        Wait while the queue is full, so that a burst waits in the spool and not in memory. `heat_map` asks
        for `Prediction.heat_map` too, which costs about as much again; the probability stays the same.

        Raises:
            ClassifierError: the classifier is not running, or the ROI has another shape or values that are
                not finite.
        """
        if pixels.shape != (self._size, self._size) or not np.isfinite(pixels).all():
            raise ClassifierError(
                f"a ROI of shape {pixels.shape} cannot be classified: "
                f"finite values of shape ({self._size}, {self._size}) were expected"
            )
        item = _Item(np.asarray(pixels, np.float32), heat_map)
        with self._gate:
            self._gate.wait_for(lambda: not self._is_open or self._waiting < self._max_waiting)
            if not self._is_open:
                raise ClassifierError("the classifier is not running; start it first")
            self._waiting += 1
            self._queue.put(item)
        return item.future

    def stop(self, limit_s: float | None = None) -> None:
        """Cancel what waits, finish the batches under way, and end the processes, within `limit_s` seconds.

        It may be called twice.
        """
        self._stopping.set()
        with self._gate:
            self._is_open = False
            self._cancel_waiting()
            self._waiting = 0
            self._queue.put(None)
            self._gate.notify_all()
        deadline = None if limit_s is None else time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._abandon()
            for thread in self._threads:
                thread.join(ABANDON_LIMIT_S)
        self._threads = []
        atexit.unregister(self._abandon)

    def _abandon(self) -> None:
        """Kill the processes; each one's thread then sees the death and releases what belonged to it."""
        self._is_open = False
        for process in self._processes:
            process.kill()

    def _cancel_waiting(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                item.future.cancel()

    def _serve(self, process: ClassifierProcess, started: Future[None]) -> None:
        try:
            process.start()
        except ConfigurationError as error:
            started.set_exception(error)
            return
        except ClassifierError as error:
            if not self._is_remote:
                started.set_exception(error)
                return
            log.error("cluster unavailable, jobs wait for it", reason=str(error))
        started.set_result(None)
        while self._is_ready(process) and (batch := self._gather()):
            self._classify(process, batch)
        process.stop()

    def _is_ready(self, process: ClassifierProcess) -> bool:
        """Return whether the thread may take work; False when the classifier stops.

        The process of a remote engine is started first, so that it takes no work from live processes. If none
        is alive, work is taken all the same and fails at once: its jobs are postponed instead of waiting
        here.
        """
        while self._is_remote and self._is_open and process.pid is None:
            try:
                process.start()
            except ClassifierError:
                if not self.pids:
                    break
                self._stopping.wait(CLUSTER_RETRY_S)
        return self._is_open or not self._is_remote

    def _gather(self) -> list[_Item]:
        """Return the next micro-batch; empty when the classifier stops."""
        batch: list[_Item] = []
        deadline = float("inf")
        while len(batch) < self._max_batch:
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)  # for this thread's next turn and for the others
                break
            with self._gate:
                self._waiting -= 1
                self._gate.notify()
            if item.future.set_running_or_notify_cancel():
                batch.append(item)
                deadline = min(deadline, time.monotonic() + self._max_wait_s)
        return batch

    def _classify(self, process: ClassifierProcess, batch: Sequence[_Item]) -> None:
        try:
            wanted = [item.heat_map for item in batch]
            answers = process.predict([item.pixels for item in batch], wanted)
        except ClassifierDied as error:
            if self._is_open:  # else we killed it, perhaps at the end of the program, when nobody may log any more
                log.warning("classifier process died", reason=str(error), rois=len(batch))
            for item in batch:
                item.deaths += 1
                if item.deaths < MAX_DEATHS and self._is_open:
                    self._classify(process, [item])
                else:
                    reason = f"the classifier died on this ROI, {item.deaths} time(s): {error}"
                    item.future.set_exception(_failure_type(error, item.deaths)(reason))
        except ClassifierError as error:
            if len(batch) > 1 and not isinstance(error, ClassifierUnavailable):
                for item in batch:
                    self._classify(process, [item])
            else:
                for item in batch:
                    item.future.set_exception(error)
        else:
            bus.publish(bus.BatchClassified(len(batch)))
            for item, (probability, heat_map) in zip(batch, answers, strict=True):
                process.resolve(item.future, probability, heat_map)


def _failure_type(death: ClassifierDied, deaths: int) -> type[ClassifierError]:
    """Return the error of a ROI whose process died: its job is quarantined, postponed, or tried again."""
    if death.is_killed_from_outside:
        return ClassifierUnavailable
    return DeadlyRoi if deaths >= MAX_DEATHS else ClassifierError


def _on_ray(
    factory: str, arguments: tuple[Any, ...], workers: Workers
) -> tuple[str, tuple[Any, ...], list[dict[str, str]]]:
    """Return factory, arguments and environments of processes whose engines are on the cluster."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError('workers.backend = "ray" needs the extra ray: install mammod[ray], or set "local"')
    from daemon.workers.ray_engine import Place

    assert workers.ray_address is not None
    place = Place(workers.ray_address, workers.ray_gpus, workers.ray_cpus)
    return "daemon.workers.ray_engine:open_engine", (place, factory, *arguments), [{}] * (workers.classifiers or 1)


def process_environments(count: int) -> list[dict[str, str]]:
    """Return what each process adds to its environment: a GPU of its own, or its share of the CPU's cores."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"), "KERAS_BACKEND": "tensorflow"}
    if numbers := gpus():
        return [{**quiet, "CUDA_VISIBLE_DEVICES": numbers[n % len(numbers)]} for n in range(count or len(numbers))]
    if count <= 1:
        return [quiet]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    return [{**quiet, THREADS_VARIABLE: threads} for _ in range(count)]
