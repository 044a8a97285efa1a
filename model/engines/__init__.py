"""Inference engines, which run a bundle. Frameworks are imported only when an engine is made.

Before an engine is used, its answers on fixed ROIs (the trial) must agree with TensorFlow's in float32.
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
    """The interface of an engine to a classifier process.

    `name` gives framework and precision, as in `Prediction.engine`. `why` explains the choice of this engine
    and the result of its trial.
    """

    name: str
    digest: str
    threshold: float
    why: str

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of malignancy: float32 (N, size, size) in 0..1 -> float32 (N,).

        Raises:
            ValueError: ROIs of another shape than the bundle's.
        """
        ...

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        """Return heat maps: float32 (N, size, size) -> float32 (N, rows, columns), see `grad_cam`.

        The grid is the network's own and coarse. None if the engine has no heat maps.

        Raises:
            ValueError: see `predict`.
        """
        ...


def load_engine(
    bundle: Bundle, name: str = "auto", *, max_batch: int = 8, threads: int = 0, cache: Path | None = None
) -> Engine:
    """Return the engine called `name` for a bundle, warmed up and past its trial.

    "auto" is OpenVINO if it is installed, not refused, and the machine has no GPU; else TensorFlow. `threads`
    is the number of CPU threads, 0 for all. Converted networks are kept in folder `cache`; without it, each
    start converts again.

    Raises:
        ConfigurationError: an unknown engine, or one that is not installed or failed its trial.
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
