"""A trial of whether TensorFlow's oneDNN kernels are faster on this CPU with equal results.

TensorFlow leaves oneDNN off on a CPU without AVX512_VNNI, where a training step of Xception-C then takes two
to three times as long. It reads the setting when it is loaded, so each side is tried in a process of its own,
and the choice is made before.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.engines.equivalence_check import LIMIT, difference
from model.engines.hardware import cpu_model

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
KEPT = "onednn.json"
TRIAL_LIMIT_S = 240


@dataclass(frozen=True)
class Trial:
    """One side's time in seconds for a step or an answer, and its probabilities (N,)."""

    seconds: float
    answers: tuple[float, ...]


Try = Callable[[bool, Path | None], Trial | None]  # oneDNN on?, the bundle to ask -> None if the trial failed


def choose_onednn(cache: Path | None, bundle: Path | None = None, *, attempt: Try | None = None) -> str:
    """Set TF_ENABLE_ONEDNN_OPTS to the faster value here, and return the choice and its reason.

    Without `bundle` a training step is tried; with it the bundle's answers, which must differ by no more than
    the limit of every engine's trial. The choice is kept in folder `cache`. Nothing is tried if the variable
    is set, or if TensorFlow is loaded already.
    """
    if VARIABLE in os.environ:
        return f"oneDNN as set ({VARIABLE}={os.environ[VARIABLE]})"
    if "tensorflow" in sys.modules:
        return "oneDNN as TensorFlow chose it when it was loaded"
    key = f"{cpu_model()}, TensorFlow {importlib.metadata.version('tensorflow')}, {bundle or 'training'}"
    kept = _read(cache)
    if key not in kept:
        kept[key] = _decide(attempt or _attempt, bundle)
        _write(cache, kept)
    value, why = kept[key]
    if value:
        os.environ[VARIABLE] = value
    return why


def _decide(attempt: Try, bundle: Path | None) -> tuple[str, str]:
    """Return the variable's value, empty to leave it, and the reason."""
    off, on = attempt(False, bundle), attempt(True, bundle)
    if off is None or on is None:
        return "", "oneDNN as TensorFlow chooses it: its trial failed"
    found = difference(np.array(on.answers), np.array(off.answers))
    times = f"{on.seconds:.2f} s with it, {off.seconds:.2f} s without"
    if bundle is not None and found > LIMIT:
        return "0", f"oneDNN is off: it differs by up to {found:.3f} ({LIMIT:g} is allowed)"
    if on.seconds < off.seconds:
        return "1", f"oneDNN is on: {times}, answers differ by at most {found:.4f}"
    return "0", f"oneDNN is off: {times}"


def _attempt(on: bool, bundle: Path | None) -> Trial | None:
    command = [sys.executable, "-m", "model.engines.onednn_trial", *([str(bundle)] if bundle else [])]
    environment = {**os.environ, VARIABLE: str(int(on)), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    environment["PYTHONPATH"] = os.pathsep.join([path for path in sys.path if path])
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TRIAL_LIMIT_S, check=True
        )
        said = json.loads(done.stdout.splitlines()[-1])
        return Trial(said["seconds"], tuple(said["answers"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError):
        return None


def _read(cache: Path | None) -> dict[str, tuple[str, str]]:
    try:
        return dict(json.loads((cache / KEPT).read_text(encoding="utf-8"))) if cache else {}
    except (OSError, ValueError):
        return {}


def _write(cache: Path | None, kept: dict[str, tuple[str, str]]) -> None:
    if cache is None:
        return
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = cache / f"{KEPT}.{os.getpid()}"
        partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        partial.replace(cache / KEPT)
    except OSError:  # it is tried again next time
        return
