"""The TensorFlow engine: in float32, or in bfloat16 if the hardware has it, as far as the bundle allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import Bundle
from model.calibration import calibrate
from model.engines.batches import bucket, checked
from model.engines.equivalence_check import LIMIT, difference, trial_rois
from model.engines.hardware import cpu_has_bfloat16, gpus
from model.engines.heat_map import grad_cam
from model.engines.onednn import choose_onednn
from model.engines.precision_split import behind, engine_name, seams, up_to
from model.engines.stderr_filter import framework_start
from model.errors import BundleError
from model.orientation import averaged

_BFLOAT16_GPU = (8, 0)  # compute capability: Ampere and later


class TensorFlowEngine:
    """One function with constant weights; batches are padded to powers of two up to `max_batch`.

    With constants TensorFlow folds batch normalisation into the kernels, which predict() cannot. No XLA: on a
    CPU it is several times slower for these networks. `precision` is "float32", "bfloat16", or a seam behind
    which it is bfloat16 (see `model.engines.precision_split`).

    Raises:
        BundleError: the bundle's weights do not fit its architecture, or Keras runs on another backend.
    """

    def __init__(self, bundle: Bundle, max_batch: int = 8, precision: str = "float32") -> None:
        with framework_start():
            _start()
            manifest = bundle.manifest
            self.why = "float32 needs no trial"
            self.digest, self.threshold = bundle.digest, manifest.threshold
            self._temperature, self._bias = manifest.temperature, manifest.bias
            self._orientations = manifest.orientations
            self.size = self._size = manifest.architecture.input_size
            self._max_batch = max_batch
            self.name, self.function = _prepared(bundle, precision)
            for count in sorted({bucket(count, max_batch) for count in range(1, max_batch + 1)}):
                self.predict(np.zeros((count, self._size, self._size), np.float32))

    def predict(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        probability, _ = self._averaged(rois)
        return calibrate(probability, self._temperature, self._bias)

    def heat_maps(self, rois: np.ndarray) -> np.ndarray:
        """See `Engine.heat_maps`."""
        return self._averaged(rois)[1]

    def _averaged(self, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return averaged(self._batch, checked(rois, self._size), self._orientations, self._max_batch)

    def _batch(self, rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((bucket(len(rois), self._max_batch), self._size, self._size, 1), np.float32)
        padded[: len(rois), ..., 0] = rois
        probability, heat_map = self.function(padded)
        return probability.numpy()[: len(rois), 0], heat_map.numpy()[: len(rois)]


def tensorflow_engine(bundle: Bundle, max_batch: int, cache: Path | None = None) -> TensorFlowEngine:
    """Return the TensorFlow engine in the fastest precision that machine and bundle allow.

    With a folder `cache` to keep the trial in, oneDNN is chosen by a trial too, see `model.engines.onednn`.
    """
    onednn = choose_onednn(cache, bundle.path) if cache is not None and not gpus() else ""
    engine = _fastest(bundle, max_batch)
    if onednn:
        engine.why = f"{engine.why}; {onednn}"
    return engine


def _fastest(bundle: Bundle, max_batch: int) -> TensorFlowEngine:
    exact = TensorFlowEngine(bundle, max_batch)
    if _gpu_has_bfloat16():
        precisions = ["bfloat16"]
    elif cpu_has_bfloat16() and not _gpus():
        precisions = seams(bundle.network())
    else:
        return exact
    rois = trial_rois(bundle.manifest.architecture.input_size)
    reference, refused = exact.predict(rois), []
    for precision in precisions:
        fast = TensorFlowEngine(bundle, max_batch, precision)
        found = difference(fast.predict(rois), reference)
        if found <= LIMIT:
            fast.why = f"differs from TensorFlow float32 by at most {found:.4f} ({LIMIT:g} is allowed)"
            return fast
        refused.append(f"{fast.name} {found:.3f}")
    if refused:
        exact.why = f"bfloat16 is refused: it differs from float32 by more than {LIMIT:g}: {', '.join(refused)}"
    return exact


def compiled(*networks: Any) -> Any:
    """Chain Keras models of one input into a TensorFlow function of any number of ROIs, float32 in and out.

    Their weights are constants.
    """
    import tensorflow as tf

    weights = [
        [
            [variable.numpy() for variable in variables]
            for variables in (network.trainable_variables, network.non_trainable_variables)
        ]
        for network in networks
    ]

    @tf.function(
        input_signature=[tf.TensorSpec((None, *networks[0].inputs[0].shape[1:]), tf.float32)],
        jit_compile=False,
        reduce_retracing=True,
    )
    def forward(rois: Any) -> Any:
        passed = [rois]
        for network, values in zip(networks, weights, strict=True):
            # Made inside the function, so that they are constants of its graph, not captured tensors.
            constants = ([tf.constant(value) for value in kind] for kind in values)
            fed = tf.cast(passed[0], network.inputs[0].dtype)
            passed = tf.nest.flatten(network.stateless_call(*constants, [fed], training=False)[0])
        return [tf.cast(one, tf.float32) for one in passed]

    return forward.get_concrete_function()


def _start() -> None:
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        raise BundleError(
            f"Keras runs on {keras.backend.backend()}; the TensorFlow engine needs KERAS_BACKEND=tensorflow"
        )
    for gpu in tf.config.list_physical_devices("GPU"):
        # Otherwise the first process takes all of its memory.
        tf.config.experimental.set_memory_growth(gpu, True)
    # A GPU's float32 would otherwise have TF32's mantissa of ten bits, and be no reference.
    tf.config.experimental.enable_tensor_float_32_execution(False)


def _gpus() -> list[Any]:
    import tensorflow as tf

    return list(tf.config.list_physical_devices("GPU"))


def _gpu_has_bfloat16() -> bool:
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in _gpus()]
    return bool(details) and all(detail.get("compute_capability", (0, 0)) >= _BFLOAT16_GPU for detail in details)


def _prepared(bundle: Bundle, precision: str) -> tuple[str, Any]:
    """Return the engine's name, and (N, S, S, 1) -> uncalibrated probability (N, 1), heat map (N, h, w)."""
    import keras

    if precision in ("float32", "bfloat16"):
        network = _network(bundle, "mixed_bfloat16" if precision == "bfloat16" else "float32")
        return f"tensorflow-{precision}", compiled(keras.Model(network.inputs, [network.outputs[0], grad_cam(network)]))
    first, second = _network(bundle, "float32"), _network(bundle, "mixed_bfloat16")
    return engine_name("tensorflow", precision), compiled(up_to(first, precision), behind(second, precision))


def _network(bundle: Bundle, policy: str) -> Any:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return bundle.network()
    finally:
        keras.config.set_dtype_policy(before)
