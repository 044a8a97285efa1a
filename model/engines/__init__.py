"""Inference engines: a bundle made ready to answer. Frameworks are imported only where an engine is made.

An engine has to prove itself before it is used: on fixed ROIs (`trial`) it must say what TensorFlow says in float32.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np

from config.errors import ConfigurationError
from model.bundle import Bundle
from model.engines.hardware import gpus
from model.errors import EngineRefused

ENGINES = ("auto", "tensorflow", "openvino")


class Engine(Protocol):
    """What a classifier process asks of an engine. `name` says framework and precision, as `Prediction.engine`.

    `why` says why it is this one, and what its trial found.
    """

    name: str
    digest: str
    threshold: float
    why: str

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """Probabilities of malignancy after calibration: float32 (N, size, size) in 0..1 -> float32 (N,).

        Raises:
            ValueError: ROIs of another shape than the bundle's.
        """
        ...

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        """Where each ROI raises its score: float32 (N, size, size) -> float32 (N, rows, columns), as `grad_cam` has it.

        The grid is the network's own and coarse. None where the engine has no heat maps.

        Raises:
            ValueError: see `predict`.
        """
        ...


def load_engine(
    bundle: Bundle, name: str = "auto", *, max_batch: int = 8, threads: int = 0, cache: Path | None = None
) -> Engine:
    """The engine called `name` for a bundle, warmed up and tried.

    "auto" is OpenVINO on a machine without GPU that has it installed, else TensorFlow, and TensorFlow too where OpenVINO is
    refused. `threads` of the CPU, 0 for all. In folder `cache` an engine keeps what it converted; without one it converts
    anew each time.

    Raises:
        ConfigurationError: no such engine, it is not installed, or it did not pass its trial.
        BundleError: the bundle's weights do not fit its architecture.
    """
    if name not in ENGINES:
        raise ConfigurationError(f"there is no engine {name!r}; known engines: {', '.join(ENGINES)}")
    engine: Engine
    installed = importlib.util.find_spec("openvino") is not None
    if name == "openvino" and not installed:
        raise ConfigurationError(
            'model.engine = "openvino" needs OpenVINO, which is not installed: pip install "mammod[openvino]", or set "auto"'
        )
    no_openvino = "there is a GPU" if gpus() else "there is no GPU, and OpenVINO is not installed"
    if name == "openvino" or (name == "auto" and installed and not gpus()):
        from model.engines.openvino import OpenVINOEngine

        try:
            engine = OpenVINOEngine(bundle, max_batch, threads, cache)
        except EngineRefused as error:
            if name == "openvino":
                raise ConfigurationError(f'model.engine = "openvino" is refused: {error}; set it to "auto"') from error
            no_openvino = f"OpenVINO is refused: {error}"
        else:
            engine.why = f"{'there is no GPU' if name == 'auto' else 'as set'}; {engine.why}"
            return engine
    from model.engines.tensorflow import tensorflow_engine

    engine = tensorflow_engine(bundle, max_batch, cache)
    engine.why = f"{no_openvino if name == 'auto' else 'as set'}; {engine.why}"
    return engine
