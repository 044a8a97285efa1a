"""The TensorFlow engine: on a CPU in float32, on an NVIDIA GPU in bfloat16 where it has it and the bundle bears it."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.bundle import Bundle
from model.calibration import calibrate
from model.engines.batches import bucket, parts
from model.engines.heat_map import grad_cam
from model.engines.quiet import framework_start
from model.engines.trial import LIMIT, difference, trial_rois
from model.errors import BundleError

_BFLOAT16_GPU = (8, 0)  # compute capability: Ampere and later


class TensorFlowEngine:
    """One function of one signature, its weights constants, batches padded to powers of two up to `max_batch`.

    With constants TensorFlow folds batch normalisation into the kernels, which predict() cannot. No XLA: on a CPU it is
    several times slower for these networks. `precision` is "float32" or "bfloat16" (for a GPU).

    Raises:
        BundleError: the bundle's weights do not fit its architecture, or Keras runs on another backend.
    """

    def __init__(self, bundle: Bundle, max_batch: int = 8, precision: str = "float32") -> None:
        with framework_start():
            _start()
            manifest = bundle.manifest
            self.name, self.why = f"tensorflow-{precision}", "float32 needs no trial"
            self.digest, self.threshold = bundle.digest, manifest.threshold
            self._temperature = manifest.temperature
            self._size = manifest.architecture.input_size
            self._max_batch = max_batch
            policy = "mixed_bfloat16" if precision == "bfloat16" else "float32"
            self.function = concrete_function(_network(bundle, policy), self._size)
            for count in sorted({bucket(count, max_batch) for count in range(1, max_batch + 1)}):
                self.predict(np.zeros((count, self._size, self._size), np.float32))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        probabilities = [self._batch(part)[0] for part in parts(rois, self._size, self._max_batch)]
        return calibrate(np.concatenate([np.zeros(0, np.float32), *probabilities]), self._temperature)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.heat_maps`."""
        return np.concatenate([self._batch(part)[1] for part in parts(rois, self._size, self._max_batch)])

    def _batch(self, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((bucket(len(rois), self._max_batch), self._size, self._size, 1), np.float32)
        padded[: len(rois), ..., 0] = rois
        probability, heat_map = self.function(padded)
        return probability.numpy()[: len(rois), 0], heat_map.numpy()[: len(rois)]


def tensorflow_engine(bundle: Bundle, max_batch: int) -> TensorFlowEngine:
    """The TensorFlow engine in the fastest precision that this machine has and this bundle bears."""
    exact = TensorFlowEngine(bundle, max_batch)
    if not _gpu_has_bfloat16():
        return exact
    fast = TensorFlowEngine(bundle, max_batch, "bfloat16")
    rois = trial_rois(bundle.manifest.architecture.input_size)
    found = difference(fast.predict(rois), exact.predict(rois))
    if found > LIMIT:
        exact.why = f"bfloat16 is refused: it differs from float32 by up to {found:.3f} ({LIMIT:g} is allowed)"
        return exact
    fast.why = f"bfloat16 differs from float32 by at most {found:.4f}"
    return fast


def concrete_function(network: Any, size: int) -> Any:
    """(N, size, size, 1) -> probability (N, 1) before calibration and heat map (N, h, w), both float32."""
    import keras

    return compiled(keras.Model(network.inputs, [network.outputs[0], grad_cam(network)]))


def compiled(network: Any) -> Any:
    """A Keras model of one input as a TensorFlow function for any number of ROIs, its weights constants."""
    import tensorflow as tf

    learnt, kept = (
        [variable.numpy() for variable in variables]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )

    @tf.function(
        input_signature=[tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32)],
        jit_compile=False,
        reduce_retracing=True,
    )
    def forward(rois: Any) -> Any:
        # Made inside the function: so they are constants of its graph and no captured tensors.
        constants = ([tf.constant(value) for value in values] for values in (learnt, kept))
        return network.stateless_call(*constants, [rois], training=False)[0]

    return forward.get_concrete_function()


def _start() -> None:
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise BundleError(
            f"Keras runs on {keras.backend.backend()}; the TensorFlow engine needs KERAS_BACKEND=tensorflow"
        )
    for gpu in tf.config.list_physical_devices("GPU"):
        # Else the first process takes all of its memory.
        tf.config.experimental.set_memory_growth(gpu, True)
    # A GPU's float32 would have the mantissa of TF32, ten bits, and be no reference.
    tf.config.experimental.enable_tensor_float_32_execution(False)


def _gpu_has_bfloat16() -> bool:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(gpus) and all(detail.get("compute_capability", (0, 0)) >= _BFLOAT16_GPU for detail in details)


def _network(bundle: Bundle, policy: str) -> Any:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return bundle.network()
    finally:
        keras.config.set_dtype_policy(before)
