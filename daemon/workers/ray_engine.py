"""An engine on a Ray cluster instead of in the classifier process: an actor there does what is called here.

Each classifier process is a Ray driver with one actor of its own, which ends with it. Ray ends a driver's
process when its cluster is gone, so the service itself holds nothing of Ray. To the service a failed cluster
is a process that died: its ROIs are classified again. Pixels of ROIs and probabilities travel, and the bundle
once for each node, but nothing that names a patient.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import config
from config.errors import ConfigurationError
from daemon.errors import ClassifierError, EngineLost
from model.bundle import load_bundle
from model.errors import BundleError

ANSWER_LIMIT_S = 5
CONNECT_LIMIT_S = 30
PLACE_LIMIT_S = 60
PLACE_RETRY_S = 3
USAGE_STATISTICS = "RAY_USAGE_STATS_ENABLED"


@dataclass(frozen=True)
class Place:
    """Where an actor runs and what it takes: the cluster's address (host:port), GPUs and CPU cores."""

    address: str
    gpus: float
    cpus: float


def open_engine(place: Place, factory: str, path: str, digest: str, engine: str, max_batch: int) -> RayEngine:
    """Return the engine that `factory` ("module:function") makes on the cluster.

    Raises:
        EngineLost: the cluster cannot be reached, or has no such place.
        ClassifierError: it cannot use the bundle, or runs another version.
    """
    return RayEngine(place, factory, Path(path), digest, engine, max_batch)


class RayEngine:
    """See `model.engines.Engine`. EngineLost from any method: the actor, its node or the cluster is gone."""

    def __init__(self, place: Place, factory: str, path: Path, digest: str, engine: str, max_batch: int) -> None:
        ray = _connect(place)
        self._ray = ray
        has = ray.cluster_resources()
        for name, wanted in (("GPU", place.gpus), ("CPU", place.cpus)):
            if wanted > has.get(name, 0):
                raise EngineLost(
                    f"the Ray cluster at {place.address} has {has.get(name, 0):g} {name} and workers.ray_{name.lower()}s asks "
                    f"for {wanted:g} of each actor; add nodes, or ask for less"
                )
        end = time.monotonic() + PLACE_LIMIT_S
        while True:
            try:
                self._place(place, factory, path, digest, engine, max_batch)
                return
            except EngineLost:  # placed on a node that is dead, which the cluster takes half a minute to know
                if time.monotonic() > end:
                    raise
                time.sleep(PLACE_RETRY_S)

    def _place(self, place: Place, factory: str, path: Path, digest: str, engine: str, max_batch: int) -> None:
        """Create an actor on the cluster, and the engine in it."""
        self._actor = (
            self._ray.remote(_Actor)
            .options(
                num_gpus=place.gpus,
                num_cpus=place.cpus,
                max_restarts=0,  # the daemon does that, and knows which ROIs were in hand
                scheduling_strategy="SPREAD",  # a node that ends takes as few as can be with it
            )
            .remote()
        )
        if not self._ask(self._actor.has.remote(digest)):
            files = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
            self._ask(self._actor.take.remote(digest, files))
        self.why = "as the cluster's node chose"
        self.name, self.digest, self.threshold = self._ask(
            self._actor.open.remote(config.__version__, factory, digest, engine, max_batch)
        )

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """Return the probabilities of ROIs; see `model.engines.Engine`."""
        return np.asarray(self._ask(self._actor.predict.remote(rois)))

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        """Return the heat maps of ROIs; see `model.engines.Engine`."""
        return self._ask(self._actor.heat_maps.remote(rois))

    def _ask(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:  # what the engine itself raised
            raise ClassifierError(f"{type(error.cause).__name__}: {error.cause}") from None
        except errors.RayError as error:
            raise EngineLost(f"its actor on the Ray cluster is gone ({type(error).__name__})") from error


def _connect(place: Place) -> Any:
    """Return Ray, connected as a driver.

    Raises:
        EngineLost: the cluster cannot be reached or joined.
    """
    os.environ[USAGE_STATISTICS] = "0"  # before the import, which reads it
    # Ray's own patience would outlast the daemon's.
    os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", f"{CONNECT_LIMIT_S}")
    host, _, port = place.address.rpartition(":")
    try:  # Ray itself would try for a minute, and not say why
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_LIMIT_S).close()
    except OSError as error:
        raise EngineLost(
            f"the Ray cluster at {place.address} cannot be reached ({error.strerror or type(error).__name__}); see whether "
            "its head is up, and workers.ray_address"
        ) from error
    import ray

    late = threading.Timer(2 * CONNECT_LIMIT_S, os._exit, [1])
    late.daemon = True
    late.start()
    try:
        ray.init(address=place.address, log_to_driver=False, logging_level="error")
    except Exception as error:  # of many kinds, by what is missing
        raise EngineLost(
            f"the Ray cluster at {place.address} cannot be joined ({type(error).__name__}); was "
            "`ray start --address` done on this machine too, and is it the same version of Ray?"
        ) from error
    finally:
        late.cancel()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ray takes them; they are for the daemon
        signal.signal(number, signal.SIG_IGN)
    return ray


class _Actor:
    """The actor on a node of the cluster. Its log identifies nobody: it gets no name and no UID."""

    def has(self, digest: str) -> bool:
        """Return whether this node has the complete bundle."""
        try:
            return load_bundle(_folder(digest), allow_untrained=True).digest == digest
        except BundleError:
            return False

    def take(self, digest: str, files: dict[str, bytes]) -> None:
        """Keep the bundle for this node's actors; `open` verifies it."""
        folder = _folder(digest)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for name, content in files.items():
                (Path(made) / Path(name).name).write_bytes(content)
            if not folder.exists():
                Path(made).rename(folder)
                Path(made).mkdir()  # which leaving the block removes
                return
            for file in Path(made).iterdir():  # half of one, or another actor was quicker with the same
                file.replace(folder / file.name)

    def open(self, version: str, factory: str, digest: str, engine: str, max_batch: int) -> tuple[str, str, float]:
        """Make the engine and return its name, digest and threshold once it is warm.

        Raises:
            ConfigurationError: this node runs another version than the service.
            BundleError: see `daemon.workers.classifier_process.open_engine`.
        """
        if version != config.__version__:
            raise ConfigurationError(
                f"a node of the Ray cluster runs mammod {config.__version__} and the service {version}; install the same on all"
            )
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        # Ray says by OMP_NUM_THREADS how many cores are this actor's.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        module, function = factory.split(":")
        self._engine = getattr(import_module(module), function)(str(_folder(digest)), digest, engine, max_batch)
        return self._engine.name, self._engine.digest, self._engine.threshold

    def predict(self, rois: np.ndarray) -> np.ndarray:
        return self._engine.predict(rois)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        return self._engine.heat_maps(rois)


def _folder(digest: str) -> Path:
    """Return where this node keeps the bundle, in a directory that belongs to this user only.

    Raises:
        ConfigurationError: it belongs to another user.
    """
    parent = Path(tempfile.gettempdir()) / f"mammod-bundles-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{parent} belongs to another user; remove it, or set TMPDIR for the Ray cluster")
    return parent / digest
