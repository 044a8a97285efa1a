"""Inference engines: a bundle made ready to answer. Frameworks are imported only where one is made."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from model.bundle import Bundle
from model.calibration import calibrate
from model.errors import BundleError

ENGINES = ("auto", "tensorflow")


class Engine(Protocol):
    """What a classifier process asks of an engine. `name` says the framework and precision, as `Prediction.engine`."""

    name: str
    digest: str
    threshold: float

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """Probabilities of malignancy after calibration: float32 (N, size, size) in 0..1 -> float32 (N,)."""
        ...


def load_engine(bundle: Bundle, name: str = "auto", *, max_batch: int = 8) -> Engine:
    """The engine called `name` for a bundle, warmed up; "auto" is TensorFlow.

    Raises:
        BundleError: no such engine, or the bundle's weights do not fit its architecture.
    """
    if name not in ENGINES:
        raise BundleError(f"there is no engine {name!r}; known engines: {', '.join(ENGINES)}")
    return TensorFlowEngine(bundle, max_batch)


class TensorFlowEngine:
    """TensorFlow in float32: one tf.function of one signature, batches padded to powers of two up to `max_batch`.

    No XLA: on a CPU it is several times slower for these networks.
    """

    name = "tensorflow-float32"

    def __init__(self, bundle: Bundle, max_batch: int = 8) -> None:
        import keras
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            raise BundleError(
                f"Keras runs on {keras.backend.backend()}; the TensorFlow engine needs KERAS_BACKEND=tensorflow"
            )
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
        manifest = bundle.manifest
        self.digest, self.threshold = bundle.digest, manifest.threshold
        self._temperature = manifest.temperature
        self._size = manifest.architecture.input_size
        self._max_batch = max_batch
        network = bundle.network()

        @tf.function(
            input_signature=[tf.TensorSpec((None, self._size, self._size, 1), tf.float32)],
            jit_compile=False,
            reduce_retracing=True,
        )
        def forward(rois: Any) -> Any:
            return network(rois, training=False)

        self._forward = forward
        for batch in {bucket(count, max_batch) for count in range(1, max_batch + 1)}:
            self.predict(np.zeros((batch, self._size, self._size), np.float32))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.predict`.

        Raises:
            ValueError: ROIs of another shape than the bundle's.
        """
        rois = np.asarray(rois, np.float32)
        if rois.ndim != 3 or rois.shape[1:] != (self._size, self._size):
            raise ValueError(f"ROIs of shape {rois.shape}; (N, {self._size}, {self._size}) was expected")
        parts = [self._batch(rois[start : start + self._max_batch]) for start in range(0, len(rois), self._max_batch)]
        return calibrate(np.concatenate([np.zeros(0, np.float32), *parts]), self._temperature)

    def _batch(self, rois: np.ndarray) -> np.ndarray:
        padded = np.zeros((bucket(len(rois), self._max_batch), self._size, self._size, 1), np.float32)
        padded[: len(rois), ..., 0] = rois
        return self._forward(padded).numpy()[: len(rois), 0]


def bucket(count: int, largest: int) -> int:
    """The batch size that `count` ROIs are padded to: the next power of two, at most `largest`."""
    return min(1 << (count - 1).bit_length(), largest)
