"""Inference engines: a bundle made ready to answer. Frameworks are imported only where one is made."""

from __future__ import annotations

from collections.abc import Callable
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

    def heat_maps(self, rois: np.ndarray) -> np.ndarray | None:
        """Where each ROI raises its score: float32 (N, size, size) -> float32 (N, rows, columns), as `grad_cam` has it.

        The grid is the network's own and coarse. None where the engine has no gradients.
        """
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
        self._network = network
        self._grad_cam: Callable[[np.ndarray], np.ndarray] | None = None
        for batch in {bucket(count, max_batch) for count in range(1, max_batch + 1)}:
            self.predict(np.zeros((batch, self._size, self._size), np.float32))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.predict`.

        Raises:
            ValueError: ROIs of another shape than the bundle's.
        """
        parts = [self._batch(part) for part in self._parts(rois)]
        return calibrate(np.concatenate([np.zeros(0, np.float32), *parts]), self._temperature)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.heat_maps`. Made ready when the first is asked for: who wants none pays nothing.

        Raises:
            ValueError: ROIs of another shape than the bundle's, or none.
        """
        if self._grad_cam is None:
            self._grad_cam = grad_cam(self._network)
        return np.concatenate([self._grad_cam(part[..., None]) for part in self._parts(rois)])

    def _parts(self, rois: np.ndarray) -> list[np.ndarray]:
        rois = np.asarray(rois, np.float32)
        if rois.ndim != 3 or rois.shape[1:] != (self._size, self._size):
            raise ValueError(f"ROIs of shape {rois.shape}; (N, {self._size}, {self._size}) was expected")
        return [rois[start : start + self._max_batch] for start in range(0, len(rois), self._max_batch)]

    def _batch(self, rois: np.ndarray) -> np.ndarray:
        padded = np.zeros((bucket(len(rois), self._max_batch), self._size, self._size, 1), np.float32)
        padded[: len(rois), ..., 0] = rois
        return self._forward(padded).numpy()[: len(rois), 0]


def grad_cam(network: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Grad-CAM (Selvaraju et al. 2017) of a network made by `build_network`: (N, size, size, 1) -> float32 (N, h, w).

    Over the last convolutional activation, what the head pools, of the logit (the sigmoid's slope would only scale it,
    down to nothing where the network is sure). A cell is what its activation adds to the logit, to first order; what
    lowers it is cut to 0. As nothing but pooling and the head lies behind, the gradient runs through the head alone.
    """
    import keras
    import tensorflow as tf

    activation, unit = network.get_layer("head_pool").input, network.get_layer("probability")
    features = keras.Model(network.input, activation)
    head = keras.Model(activation, unit.input)

    @tf.function(input_signature=[tf.TensorSpec(network.input.shape, tf.float32)], reduce_retracing=True)
    def maps(rois: Any) -> Any:
        seen = features(rois, training=False)
        with tf.GradientTape() as tape:
            tape.watch(seen)
            # Without the bias, which has no gradient.
            logit = tf.matmul(tf.cast(head(seen, training=False), tf.float32), tf.convert_to_tensor(unit.kernel))
        weights = tf.reduce_mean(tape.gradient(logit, seen), axis=(1, 2), keepdims=True)
        return tf.cast(tf.nn.relu(tf.reduce_sum(weights * seen, axis=-1)), tf.float32)

    return lambda rois: maps(rois).numpy()


def bucket(count: int, largest: int) -> int:
    """The batch size that `count` ROIs are padded to: the next power of two, at most `largest`."""
    return min(1 << (count - 1).bit_length(), largest)
