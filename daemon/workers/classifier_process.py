"""One classifier process: its handle in the service, and what runs in the process itself.

ROIs travel in memory that both sides map, everything else through a pipe. The service asks with a list that
says for each ROI whether its heat map is wanted. The process answers with a pair: (True, result), (False,
reason) if the engine refused, or (None, reason) if the engine is lost, after which the process exits.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from config.errors import ConfigurationError
from daemon.errors import ClassifierError, ClassifierUnavailable, EngineLost
from daemon.events.bus import WorkerKind
from daemon.events.timings import Stage, used
from daemon.system.backoff import Backoff
from daemon.system.child_process import SPAWN, ChildError, ChildExited, initialise_child
from daemon.system.supervisor import NO_BACKOFF, SupervisedProcess
from model.bundle import load_bundle
from model.engines import Engine, load_engine
from model.errors import BundleError
from model.prediction import Prediction

THREADS_VARIABLE = "TF_NUM_INTRAOP_THREADS"  # TensorFlow reads it by itself
STOP_LIMIT_S = 5.0  # for an idle process to exit

log = structlog.get_logger(__name__)


class ClassifierDied(ClassifierError):
    """The process exited, or was killed, without an answer.

    `is_killed_from_outside`: by a SIGKILL that was not ours (an operator, a system out of memory), for which
    no ROI is to blame.
    """

    def __init__(self, reason: str, is_killed_from_outside: bool = False) -> None:
        super().__init__(reason)
        self.is_killed_from_outside = is_killed_from_outside


@dataclass(frozen=True)
class EngineFacts:
    """What a process says of its engine when it is warm."""

    name: str = ""
    why: str = ""
    digest: str = ""
    threshold: float = 0.5


class ClassifierProcess:
    """One classifier process as its thread in the service sees it; only `kill` and `pid` are thread-safe.

    `factory` ("module:function") makes the engine in the process of `arguments`, after `environment` has been
    set. `roi_size` is the edge of a ROI in pixels, `max_batch` the number of ROIs that fit into the shared
    memory.
    """

    def __init__(
        self,
        *,
        factory: str,
        arguments: tuple[Any, ...],
        environment: dict[str, str],
        max_batch: int,
        roi_size: int,
        start_limit_s: float,
        hang_limit_s: float,
        backoff: Backoff = NO_BACKOFF,
    ) -> None:
        # The memory is a file without a name, which disappears with the last process that maps it.
        memory = SPAWN.RawArray(ctypes.c_float, max_batch * roi_size * roi_size)
        self._rois = _as_rois(memory, roi_size)
        self._process = SupervisedProcess(
            "mammod-classifier",
            WorkerKind.CLASSIFIER,
            _run,
            *(factory, arguments, environment, memory, roi_size),
            start_limit_s=start_limit_s,
            backoff=backoff,
        )
        self._hang_limit_s = hang_limit_s
        self.engine = EngineFacts()
        self.trouble: str | None = None  # why the last start failed

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if there is no live process."""
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait for its engine.

        Raises:
            ClassifierUnavailable: the process died, or its engine refused the bundle; or the last start
                failed so recently that the back-off is not over.
            ConfigurationError: see `daemon.workers.classifier_pool.ClassifierPool.start`.
        """
        if self.trouble and self._process.pause_left_s > 0:
            raise ClassifierUnavailable(self.trouble)
        self._process.close()
        try:
            facts = self._checked(self._process.ready)
        except ClassifierError as error:
            self._process.close()
            self._process.note_failure()
            self.trouble = f"the classifier cannot start: {error}"
            raise ClassifierUnavailable(self.trouble) from error
        except ConfigurationError as error:
            self._process.close()
            self.trouble = str(error)
            raise
        self._process.note_started()
        self.engine, self.trouble = facts, None

    def predict(self, rois: Sequence[np.ndarray], heat_maps: Sequence[bool]) -> list[tuple[float, np.ndarray | None]]:
        """Return the probability of each ROI (size, size), and its heat map if wanted.

        A process that died in the meantime is started again first.

        Raises:
            ClassifierDied: the process exited, or gave no answer in time.
            ClassifierUnavailable: see `start`.
            ClassifierError: the engine refused the batch.
        """
        if self.pid is None:
            log.warning("restarting classifier process")
            self._process.replace()
            try:
                self.start()
            except ConfigurationError as error:  # it was right when the service started
                raise ClassifierUnavailable(f"the classifier cannot start: {error}") from error
        for index, roi in enumerate(rois):
            self._rois[index] = roi
        answers, cpu_seconds = self._checked(self._process.ask, self._hang_limit_s, heat_maps)
        used(Stage.CLASSIFY, cpu_seconds)
        return answers

    def _checked(self, ask: Callable[..., tuple[bool | None, Any]], *arguments: Any) -> Any:
        """Return the result in the answer of `ask`, or raise its error; see the module's docstring."""
        try:
            is_done, answer = ask(*arguments)
        except ChildError as error:
            raise ClassifierDied(str(error), isinstance(error, ChildExited) and error.is_killed) from error
        if is_done is None:
            self._process.close()
            raise ClassifierDied(answer)
        if isinstance(answer, ConfigurationError):
            raise answer
        if not is_done:
            raise ClassifierError(answer)
        return answer

    def resolve(self, future: Future[Prediction], probability: float, heat_map: np.ndarray | None) -> None:
        """Set the result of one ROI's future, or its exception if `probability` is not in 0..1."""
        if not 0 <= probability <= 1:
            future.set_exception(ClassifierError(f"the network gave {probability}, which is no probability"))
            return
        is_malignant = probability >= self.engine.threshold
        future.set_result(Prediction(probability, is_malignant, self.engine.name, self.engine.digest, heat_map))

    def stop(self) -> None:
        """Let the idle process exit by itself within `STOP_LIMIT_S`, or kill it."""
        self._process.stop(None, STOP_LIMIT_S)

    def kill(self) -> None:
        """Kill the process, from any thread."""
        self._process.kill()


# --- in the process ---


def _run(
    pipe: Connection, factory: str, arguments: tuple[Any, ...], environment: dict[str, str], memory: Any, roi_size: int
) -> None:
    """Send the facts of the engine once it is warm, then an answer for each batch that lies in `memory`."""
    initialise_child("mammod-classify")
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
    pipe.send((True, EngineFacts(engine.name, engine.why, engine.digest, engine.threshold)))
    rois = _as_rois(memory, roi_size)
    while (heat_maps := _next_request(pipe)) is not None:
        try:
            started = time.process_time()
            answers = _classify(engine, rois[: len(heat_maps)], heat_maps)
            pipe.send((True, (answers, time.process_time() - started)))
        except EngineLost as error:
            pipe.send((None, str(error)))
            return
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))


def open_engine(path: str, digest: str, engine: str, max_batch: int, cache: Path | None = None) -> Engine:
    """Return the engine of the bundle at `path`; the default `factory` of the classifier processes.

    Raises:
        BundleError: the bundle cannot be used, or is no longer the one that the service opened.
        ConfigurationError: see `model.engines.load_engine`.
    """
    # The service decided whether the bundle may be untrained when it opened it.
    bundle = load_bundle(Path(path), allow_untrained=True)
    if bundle.digest != digest:
        raise BundleError(f"the bundle in {path} was changed since the service started; restart the service")
    threads = int(os.environ.get(THREADS_VARIABLE, "0"))
    return load_engine(bundle, engine, max_batch=max_batch, threads=threads, cache=cache)


def _classify(engine: Engine, rois: np.ndarray, heat_maps: Sequence[bool]) -> list[tuple[float, np.ndarray | None]]:
    probabilities = engine.predict(rois).tolist()
    maps = engine.heat_maps(rois[np.asarray(heat_maps)]) if any(heat_maps) else None
    remaining = iter(()) if maps is None else iter(maps)
    return [
        (probability, next(remaining, None) if is_wanted else None)
        for probability, is_wanted in zip(probabilities, heat_maps, strict=True)
    ]


def _as_rois(memory: Any, roi_size: int) -> np.ndarray:
    """Return shared memory as ROIs: float32 (max_batch, roi_size, roi_size)."""
    return np.frombuffer(memory, np.float32).reshape(-1, roi_size, roi_size)


def _next_request(pipe: Connection) -> Sequence[bool] | None:
    """Return for each ROI of the next batch whether its heat map is wanted; None at the end."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None
