"""The classifier: engines in processes of their own, so that the daemon never imports a framework or dies with one.

ROIs from any thread wait in one queue of limited length; each process is fed micro-batches from it by one thread here, by
memory that both sides see. A process that dies or hangs is replaced and its ROIs are done again one by one; a ROI that has
met two deaths fails alone: for good, or for a while where the last was by SIGKILL from outside.

With backend "ray" each process has its engine on a cluster (`daemon.workers.ray_engine`). A cluster may be away for long and come
back: then it is asked for again and again, and ROIs fail meanwhile as ClassifierUnavailable, so that their jobs wait.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.util
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from config.errors import ConfigurationError
from config.settings import Workers
from daemon.errors import ClassifierError, ClassifierUnavailable, DeadlyRoi, EngineLost
from daemon.events import bus
from daemon.events.timings import Stage, used
from daemon.system.child_process import SPAWN, ChildProcess, TooLate, begin
from model.bundle import Bundle, load_bundle
from model.engines import Engine, load_engine
from model.engines.hardware import gpus
from model.errors import BundleError
from model.prediction import Prediction

log = structlog.get_logger(__name__)

_DEATHS_TO_BLAME = 2
_BATCHES_WAITING = 4  # for each process: enough to keep it busy, and all the memory that a burst takes
_AWAY_S = 10.0  # until a cluster that could not be had is asked for again
_ABANDONED_S = 5.0  # for a thread to find that its process was ended
_THREADS = "TF_NUM_INTRAOP_THREADS"  # TensorFlow reads it by itself


class ClassifierPool:
    """Classifies ROIs with a bundle's engine in `workers.classifiers` processes (0: one, or one for each NVIDIA GPU).

    In folder `cache` an engine keeps what it converted (see `model.engines.load_engine`). `factory` ("module:function",
    called in the process) makes the engine; tests put their own there. `start_limit_s` and `hang_limit_s` bound the warm-up
    and one batch. Thread-safe.

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
        factory: str = "daemon.workers.classifier_pool:open_engine",
        start_limit_s: float = 300,
        hang_limit_s: float = 120,
    ) -> None:
        self._size = bundle.manifest.architecture.input_size
        arguments: tuple[Any, ...] = (str(bundle.path), bundle.digest, engine, workers.max_batch)
        environments = _environments(workers.classifiers)
        self._remote = workers.backend == "ray"
        if self._remote:
            factory, arguments, environments = _on_ray(factory, arguments, workers)
        else:
            arguments = (*arguments, cache)
        batch, patience_s = (workers.max_batch, self._size), _AWAY_S if self._remote else 0
        self._workers = [
            _Worker(factory, arguments, batch, environment, start_limit_s, hang_limit_s, patience_s)
            for environment in environments
        ]
        self._max_batch, self._max_wait_s = workers.max_batch, workers.max_wait_ms / 1000
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._room = _BATCHES_WAITING * workers.max_batch * len(self._workers)
        self._waiting = 0
        self._threads: list[threading.Thread] = []
        self._open = False
        self._gate = threading.Condition()
        self._stopping = threading.Event()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are alive now."""
        return tuple(worker.pid for worker in self._workers if worker.pid is not None)

    @property
    def expected(self) -> int:
        """How many processes there should be; one that died is started again when the next ROI comes."""
        return len(self._workers)

    @property
    def waiting(self) -> int:
        """ROIs that no process has taken yet."""
        return self._queue.qsize()

    @property
    def engine(self) -> str:
        """The name of what runs the network; "" before the start."""
        return self._workers[0].engine

    @property
    def why(self) -> str:
        """Why it is this engine, and what its trial found; "" before the start."""
        return self._workers[0].why

    @property
    def trouble(self) -> str | None:
        """Why no process can be started, where none is alive and the last attempt failed."""
        if self.pids:
            return None
        return next((worker.trouble for worker in self._workers if worker.trouble), None)

    def start(self) -> None:
        """Start the processes and return when every engine is warm, or known to be on a cluster that is away.

        Raises:
            ClassifierError: a process died or could not open the bundle; the message says why, none is left running.
            ConfigurationError: the engine that the settings name is not installed or did not pass its trial.
        """
        started: list[Future[None]] = [Future() for _ in self._workers]
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name=f"classifier-{number}", daemon=True)
            for number, pair in enumerate(zip(self._workers, started, strict=True))
        ]
        self._queue, self._waiting = queue.SimpleQueue(), 0
        self._stopping.clear()
        self._open = True
        # Before multiprocessing's own end of program, which waits for a process that ignores its signal.
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
        """Queue one ROI, float (size, size) in 0..1; its future fails with ClassifierError where it cannot be done.

        Waits while the queue is full, so that a burst waits in the spool and not in memory. `heat_map` asks for
        `Prediction.heat_map` too, which costs about as much again; the probability stays the same.

        Raises:
            ClassifierError: the classifier is not running, or the ROI has another shape or values that are no numbers.
        """
        if pixels.shape != (self._size, self._size) or not np.isfinite(pixels).all():
            raise ClassifierError(
                f"a ROI of shape {pixels.shape} cannot be classified: "
                f"finite values of shape ({self._size}, {self._size}) were expected"
            )
        item = _Item(np.asarray(pixels, np.float32), heat_map)
        with self._gate:
            self._gate.wait_for(lambda: not self._open or self._waiting < self._room)
            if not self._open:
                raise ClassifierError("the classifier is not running; start it first")
            self._waiting += 1
            self._queue.put(item)
        return item.future

    def stop(self, limit_s: float | None = None) -> None:
        """Finish the batches under way, within `limit_s` seconds where given, cancel what waits and end the processes.

        May be called twice.
        """
        self._stopping.set()
        with self._gate:
            self._open = False
            self._cancel_waiting()
            self._waiting = 0
            self._queue.put(None)
            self._gate.notify_all()
        end = None if limit_s is None else time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._abandon()
            for thread in self._threads:
                thread.join(_ABANDONED_S)
        self._threads = []
        atexit.unregister(self._abandon)

    def _abandon(self) -> None:
        """End the processes, each of whose threads then finds it dead, and puts away what belonged to it."""
        self._open = False
        for worker in self._workers:
            worker.kill()

    def _cancel_waiting(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                item.future.cancel()

    def _serve(self, worker: _Worker, started: Future[None]) -> None:
        try:
            worker.start()
        except ConfigurationError as error:
            started.set_exception(error)
            return
        except ClassifierError as error:
            if not self._remote:
                started.set_exception(error)
                return
            log.error("the cluster cannot be had, jobs wait for it", reason=str(error))
        started.set_result(None)
        while self._is_ready(worker) and (batch := self._gather()):
            self._classify(worker, batch)
        worker.stop()

    def _is_ready(self, worker: _Worker) -> bool:
        """Have a remote engine's process up before work is taken from others that live; False when the classifier stops.

        Where none lives work is taken all the same, and fails at once: its jobs are put off and stop waiting here.
        """
        while self._remote and self._open and worker.pid is None:
            try:
                worker.start()
            except ClassifierError:
                if not self.pids:
                    break
                self._stopping.wait(_AWAY_S)
        return self._open or not self._remote

    def _gather(self) -> list[_Item]:
        """The next micro-batch; empty when the classifier stops."""
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

    def _classify(self, worker: _Worker, batch: Sequence[_Item]) -> None:
        try:
            wanted = [item.heat_map for item in batch]
            answers = worker.predict([item.pixels for item in batch], wanted)
        except _Died as error:
            if (
                self._open
            ):  # else it was ended by us, at the end of the program perhaps, where nobody may write any more
                log.warning("classifier process died", reason=str(error), rois=len(batch))
            for item in batch:
                item.deaths += 1
                if item.deaths < _DEATHS_TO_BLAME and self._open:
                    self._classify(worker, [item])
                else:
                    died = f"the classifier died on this ROI, {item.deaths} time(s): {error}"
                    item.future.set_exception(_verdict(error, item.deaths)(died))
        except ClassifierError as error:
            if len(batch) > 1 and not isinstance(error, ClassifierUnavailable):
                for item in batch:
                    self._classify(worker, [item])
            else:
                for item in batch:
                    item.future.set_exception(error)
        else:
            bus.publish(bus.BatchClassified(len(batch)))
            for item, (probability, heat_map) in zip(batch, answers, strict=True):
                worker.answer(item.future, probability, heat_map)


def _verdict(death: _Died, deaths: int) -> type[ClassifierError]:
    """What a ROI fails as whose process died: its job is quarantined, put off, or done again."""
    if death.from_outside:
        return ClassifierUnavailable
    return DeadlyRoi if deaths >= _DEATHS_TO_BLAME else ClassifierError


def open_engine(path: str, digest: str, engine: str, max_batch: int, cache: Path | None = None) -> Engine:
    """The engine of the bundle at `path`, in the classifier process.

    Raises:
        BundleError: the bundle cannot be used, or is no longer the one that the daemon opened.
        ConfigurationError: see `model.engines.load_engine`.
    """
    # The daemon opened it already, and decided there whether it may be untrained.
    bundle = load_bundle(Path(path), allow_untrained=True)
    if bundle.digest != digest:
        raise BundleError(f"the bundle in {path} was changed since the service started; restart the service")
    threads = int(os.environ.get(_THREADS, "0"))
    return load_engine(bundle, engine, max_batch=max_batch, threads=threads, cache=cache)


@dataclass(eq=False)
class _Item:
    pixels: np.ndarray
    heat_map: bool
    future: Future[Prediction] = field(default_factory=Future)
    deaths: int = 0


class _Died(ClassifierError):
    """The process ended, or was ended, without an answer.

    `from_outside`: by SIGKILL that was not ours (an operator, a system out of memory), of which no ROI is guilty.
    """

    def __init__(self, reason: str, from_outside: bool = False) -> None:
        super().__init__(reason)
        self.from_outside = from_outside


class _Worker:
    """One classifier process as its thread sees it."""

    def __init__(
        self,
        factory: str,
        arguments: tuple[Any, ...],
        batch: tuple[int, int],
        environment: dict[str, str],
        start_limit_s: float,
        hang_limit_s: float,
        patience_s: float = 0,
    ) -> None:
        self._factory, self._arguments, self._environment = factory, arguments, environment
        self._patience_s = patience_s  # after a start that failed
        # ROIs go over in memory that both processes map: a file that has no name any more, gone with the last of them.
        count, size = batch
        self._memory = SPAWN.RawArray(ctypes.c_float, count * size * size)
        self._rois = _as_rois(self._memory, size)
        self._start_limit_s, self._hang_limit_s = start_limit_s, hang_limit_s
        self._child: ChildProcess | None = None
        self.engine, self.why = "", ""
        self._digest, self._threshold = "", 0.5
        self.trouble: str | None = None
        self._failed_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the process and wait for its engine.

        Raises:
            ClassifierUnavailable: the process died, or its engine refused the bundle; or it was on a cluster that could not
                be had a moment ago.
            ConfigurationError: see `ClassifierPool.start`.
        """
        if self.trouble and time.monotonic() - self._failed_at < self._patience_s:
            raise ClassifierUnavailable(self.trouble)
        work = (self._factory, self._arguments, self._environment, self._memory, self._rois.shape[1])
        self._child = child = ChildProcess("mammod-classifier", _work, *work)
        try:
            facts = _answer(child, self._start_limit_s)
        except ClassifierError as error:
            child.end()
            self.trouble, self._failed_at = f"the classifier cannot start: {error}", time.monotonic()
            raise ClassifierUnavailable(self.trouble) from error
        except ConfigurationError as error:
            child.end()
            self.trouble = str(error)
            raise
        self.engine, self.why, self._digest, self._threshold = facts
        self.trouble = None

    def predict(self, rois: Sequence[np.ndarray], heat_maps: Sequence[bool]) -> list[tuple[float, np.ndarray | None]]:
        """Probability and, where wanted, heat map of each of ROIs (size, size), at most a batch of them.

        A process that died meanwhile is started again first.

        Raises:
            _Died: the process ended, or gave no answer in time.
            ClassifierUnavailable: see `start`.
            ClassifierError: the engine refused the batch.
        """
        if self.pid is None:
            log.warning("starting the classifier process again")
            bus.publish(bus.WorkerRestarted(bus.WorkerKind.CLASSIFIER))
            try:
                self.start()
            except ConfigurationError as error:  # it was right when the service started
                raise ClassifierUnavailable(f"the classifier cannot start: {error}") from error
        assert self._child is not None
        for place, roi in enumerate(rois):
            self._rois[place] = roi
        answers, cpu_seconds = _answer(self._child, self._hang_limit_s, heat_maps)
        used(Stage.CLASSIFY, cpu_seconds)
        return answers

    def answer(self, future: Future[Prediction], probability: float, heat_map: np.ndarray | None) -> None:
        """Settle the future of one ROI."""
        if not 0 <= probability <= 1:
            future.set_exception(ClassifierError(f"the network gave {probability}, which is no probability"))
            return
        malignant = probability >= self._threshold
        future.set_result(Prediction(probability, malignant, self.engine, self._digest, heat_map))

    def stop(self) -> None:
        """Let the process end by itself, or end it."""
        if (child := self._child) is None:
            return
        try:
            child.pipe.send(None)
            child.join(5)
        except OSError:
            pass  # it is gone already
        child.end()

    def kill(self) -> None:
        """End the process now; from any thread."""
        if (child := self._child) is not None:
            child.kill()


def _answer(child: ChildProcess, limit_s: float, *request: Any) -> Any:
    """What a process answers, to `request` where there is one."""
    try:
        succeeded, answer = child.ask(limit_s, *request)
    except TooLate as error:
        child.join()
        raise _Died(f"its process gave no answer within {limit_s:g} s") from error
    except (EOFError, OSError) as error:
        child.join()
        raise _Died(f"its process ended ({child.exitcode})", child.exitcode == -signal.SIGKILL) from error
    if succeeded is None:  # the engine is lost; its process ends
        child.kill()
        child.join()
        raise _Died(answer)
    if isinstance(answer, ConfigurationError):
        raise answer
    if not succeeded:
        raise ClassifierError(answer)
    return answer


def _work(
    pipe: Connection,
    factory: str,
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    memory: Any,
    size: int,
) -> None:
    """The classifier process: (True, facts of its engine) once warm, then an answer for each batch that lies in `memory`."""
    begin("mammod-classify")
    os.environ.update(environment)
    try:
        module, function = factory.split(":")
        engine: Engine = getattr(importlib.import_module(module), function)(*arguments)
    except EngineLost as error:
        pipe.send((None, str(error)))
        return
    except ConfigurationError as error:
        pipe.send((False, error))
        return
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    pipe.send((True, (engine.name, engine.why, engine.digest, engine.threshold)))
    rois = _as_rois(memory, size)
    while (heat_maps := _next(pipe)) is not None:
        try:
            began = time.process_time()
            answers = _answers(engine, rois[: len(heat_maps)], heat_maps)
            pipe.send((True, (answers, time.process_time() - began)))
        except EngineLost as error:
            pipe.send((None, str(error)))
            return
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))


def _answers(engine: Engine, rois: np.ndarray, heat_maps: Sequence[bool]) -> list[tuple[float, np.ndarray | None]]:
    probabilities = engine.predict(rois).tolist()
    maps = engine.heat_maps(rois[np.asarray(heat_maps)]) if any(heat_maps) else None
    rest = iter(()) if maps is None else iter(maps)
    return [
        (probability, next(rest, None) if wanted else None)
        for probability, wanted in zip(probabilities, heat_maps, strict=True)
    ]


def _as_rois(memory: Any, size: int) -> np.ndarray:
    """Shared memory as ROIs: float32 (max_batch, size, size)."""
    return np.frombuffer(memory, np.float32).reshape(-1, size, size)


def _next(pipe: Connection) -> Sequence[bool] | None:
    """For each ROI of the next batch whether its heat map is wanted."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None  # the daemon is gone


def _on_ray(
    factory: str, arguments: tuple[Any, ...], workers: Workers
) -> tuple[str, tuple[Any, ...], list[dict[str, str]]]:
    """Factory, arguments and environments of processes whose engines are on the cluster."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError('workers.backend = "ray" needs the extra ray: install mammod[ray], or set "local"')
    from daemon.workers.ray_engine import Place

    assert workers.ray_address is not None
    place = Place(workers.ray_address, workers.ray_gpus, workers.ray_cpus)
    return "daemon.workers.ray_engine:open_engine", (place, factory, *arguments), [{}] * (workers.classifiers or 1)


def _environments(count: int) -> list[dict[str, str]]:
    """What each process adds to its environment: a GPU of its own, or its share of the CPU's cores."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"), "KERAS_BACKEND": "tensorflow"}
    if numbers := gpus():
        return [{**quiet, "CUDA_VISIBLE_DEVICES": numbers[n % len(numbers)]} for n in range(count or len(numbers))]
    if count <= 1:
        return [quiet]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    return [{**quiet, _THREADS: threads} for _ in range(count)]
