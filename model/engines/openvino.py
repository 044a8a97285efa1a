"""The OpenVINO engine, for CPUs: in bfloat16 as far as the bundle allows, without TensorFlow in its process.

Each bundle's network is converted once, by `model.engines.convert` in a process of its own, which also
records TensorFlow's float32 answers for the trial's ROIs. The engine is compared with them at every start.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import Bundle
from model.calibration import calibrate
from model.engines.batches import checked
from model.engines.equivalence_check import LIMIT, difference, trial_rois
from model.engines.hardware import cpu_has_bfloat16
from model.errors import EngineRefused
from model.orientation import averaged

FORMAT = 2  # of the cached files; part of the key
REFERENCE, PLAN = "reference.npy", "plan.json"
CONVERT_LIMIT_S = 240
UNUSED_S = 30 * 86_400  # after which a converted network is removed


class OpenVINOEngine:
    """The network as one or two compiled graphs: float32 up to a layer, bfloat16 behind it.

    Any batch up to `max_batch` runs unpadded: OpenVINO caches its preparation for each size.

    Raises:
        EngineRefused: the network cannot be converted, or did not pass its trial.
    """

    def __init__(self, bundle: Bundle, max_batch: int = 8, threads: int = 0, cache: Path | None = None) -> None:
        manifest = bundle.manifest
        self.digest, self.threshold = bundle.digest, manifest.threshold
        self._temperature, self._bias = manifest.temperature, manifest.bias
        self._orientations = manifest.orientations
        self._size, self._max_batch = manifest.architecture.input_size, max_batch
        with _converted(bundle, cache) as folder:
            plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            reference = np.load(folder / REFERENCE, allow_pickle=False)
            self.name = plan["name"]
            self._graph = Graph([(str(folder / file), precision) for file, precision in plan["parts"]], threads)
            found = difference(self.predict(trial_rois(self._size)), reference)
        if found > LIMIT:
            raise EngineRefused(
                f"{self.name} differs from {plan['reference']} by up to {found:.3f} ({LIMIT:g} is allowed)"
            )
        self.why = f"differs from {plan['reference']} by at most {found:.4f} ({LIMIT:g} is allowed)"
        if plan["refused"]:
            self.why += f"; faster ones differ by more: {', '.join(plan['refused'])}"
        for count in (1, max_batch):
            self.predict(np.zeros((count, self._size, self._size), np.float32))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        probability, _ = self._averaged(rois)
        return calibrate(probability, self._temperature, self._bias)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.heat_maps`."""
        return self._averaged(rois)[1]

    def _averaged(self, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return averaged(self._graph, checked(rois, self._size), self._orientations, self._max_batch)


class Graph:
    """Models, each a file or an `openvino.Model` with its precision ("f32", "bf16"), one after the other."""

    def __init__(self, models: Sequence[tuple[Any, str]], threads: int = 0) -> None:
        core = openvino().Core()
        self._requests = []
        for model, precision in models:
            hints = {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, all threads on it
                "ENABLE_CPU_PINNING": False,  # decoders and listener want the cores too
                **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
            }
            self._requests.append(core.compile_model(model, "CPU", hints).create_infer_request())

    def __call__(self, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run (N, size, size) -> probability (N,) before calibration, heat map (N, h, w)."""
        fed: Any = np.ascontiguousarray(rois)[..., None]
        for request in self._requests:
            request.infer([fed], share_inputs=True)
            fed = request.get_output_tensor(0)
        return fed.data[:, 0].copy(), request.get_output_tensor(1).data.copy()


def openvino() -> Any:
    """Return the openvino module without its telemetry.

    `import openvino` reports to a server on the internet if it finds the package openvino-telemetry, unless a
    file in the user's home forbids it. The package is hidden here, so OpenVINO uses its own stub.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as module

    return module


def has_tensorflow() -> bool:
    """Return whether TensorFlow is installed; it is not needed here, but is the better reference."""
    return importlib.util.find_spec("tensorflow") is not None


def key(bundle: Bundle) -> str:
    """Return the cache name of a converted network, from bundle, converters' versions and CPU features."""
    converters = ("openvino", "keras", *(["tensorflow"] if has_tensorflow() else []))
    versions = [importlib.metadata.version(name) for name in converters]
    parts = [bundle.digest, *versions, str(FORMAT), str(cpu_has_bfloat16())]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


@contextmanager
def _converted(bundle: Bundle, cache: Path | None) -> Iterator[Path]:
    """Yield the folder with the converted network; convert it if missing, and keep it in `cache`."""
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="mammod-engine-") as folder:
            _convert(bundle, Path(folder))
            yield Path(folder)
        return
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Several classifier processes start at once: one converts, the others wait for it.
        with (cache / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            target = cache / key(bundle)
            if not target.is_dir():
                for old in cache.iterdir():
                    if old.is_dir() and time.time() - old.stat().st_mtime > UNUSED_S:
                        shutil.rmtree(old, ignore_errors=True)
                partial = Path(tempfile.mkdtemp(prefix=".", dir=cache))
                try:
                    _convert(bundle, partial)
                    partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            os.utime(target)
    except OSError as error:
        raise EngineRefused(f"the converted network cannot be kept in {cache}: {error.strerror}") from error
    yield target


def _convert(bundle: Bundle, folder: Path) -> None:
    command = [sys.executable, "-m", "model.engines.convert", str(bundle.path), str(folder)]
    backend = "tensorflow" if has_tensorflow() else "openvino"
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"}
    environment["PYTHONPATH"] = os.pathsep.join([path for path in sys.path if path])
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONVERT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineRefused(f"converting the network took more than {CONVERT_LIMIT_S} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended ({done.returncode})"]
        raise EngineRefused(f"the network cannot be converted: {said[-1]}")
