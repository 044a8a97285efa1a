"""`python -m model.engines.convert BUNDLE FOLDER`: convert a bundle's network for OpenVINO, with a reference.

FOLDER gets the graphs (IR), `reference.npy` (float32 on the trial's ROIs) and `plan.json`: the fastest plan
for the graphs whose probabilities stay within the trial's limit (see `model.engines.precision_split`). The
reference is TensorFlow's. If TensorFlow is not installed, Keras builds the graphs on its OpenVINO backend,
and the reference is OpenVINO's own float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.bundle import Bundle, load_bundle
from model.calibration import calibrate
from model.engines.equivalence_check import LIMIT, difference, trial_rois
from model.engines.hardware import cpu_has_bfloat16
from model.engines.heat_map import grad_cam
from model.engines.openvino import PLAN, REFERENCE, Graph, has_tensorflow, openvino
from model.engines.precision_split import behind, engine_name, seams, up_to
from model.engines.tensorflow import TensorFlowEngine, compiled
from model.errors import EngineRefused
from model.orientation import averaged

if TYPE_CHECKING:
    import keras


def convert(bundle: Bundle, folder: Path) -> None:
    """Write graphs, reference and plan of a bundle into `folder`, see the module.

    Raises:
        EngineRefused: not even float32 passes the trial.
        BundleError: the weights do not fit the architecture.
    """
    rois = trial_rois(bundle.manifest.architecture.input_size)
    module = openvino()
    if has_tensorflow():
        exact = TensorFlowEngine(bundle)
        reference, referee = exact.predict(rois), "TensorFlow float32"
        whole = module.convert_model(exact.function)
    else:
        import keras  # after OpenVINO, which its backend would import with telemetry

        network = bundle.network()
        whole = traced(keras.Model(network.inputs, [network.outputs[0], grad_cam(network)]))
        reference, referee = _probabilities(bundle, [(whole, "f32")], rois), "OpenVINO float32"
    refused = []
    for name, models in _plans(bundle, whole):
        found = difference(_probabilities(bundle, models, rois), reference)
        if found <= LIMIT:
            break
        refused.append(f"{name} {found:.3f}")
    else:
        raise EngineRefused(f"it differs from {referee} by more than {LIMIT:g}: {', '.join(refused)}")
    parts = []
    for number, (model, precision) in enumerate(models):
        # Not in half precision on disk: the graphs include batch normalisation's parameters.
        module.save_model(model, folder / f"{number}.xml", compress_to_fp16=False)
        parts.append((f"{number}.xml", precision))
    np.save(folder / REFERENCE, reference, allow_pickle=False)
    plan = {"name": name, "parts": parts, "refused": refused, "reference": referee}
    (folder / PLAN).write_text(json.dumps(plan, indent=1), encoding="utf-8")


def traced(network: keras.Model) -> Any:
    """Trace a Keras model of one input on the OpenVINO backend into an `openvino.Model` of any batch size."""
    from keras.src.backend.openvino.core import OpenVINOKerasTensor

    module = openvino()
    operations = module.opset15
    parameter = operations.parameter([-1, *network.inputs[0].shape[1:]], module.Type.f32)
    outputs = network(OpenVINOKerasTensor(parameter.output(0)), training=False)
    results = outputs if isinstance(outputs, list | tuple) else [outputs]
    return module.Model([operations.result(one.output) for one in results], [parameter])


def _probabilities(bundle: Bundle, models: Sequence[tuple[Any, str]], rois: np.ndarray) -> np.ndarray:
    manifest = bundle.manifest
    raw, _ = averaged(Graph(models), rois, manifest.orientations, 8)
    return calibrate(raw, manifest.temperature, manifest.bias)


def _plans(bundle: Bundle, whole: Any) -> Any:
    """Yield (engine name, models with their precision), the fastest first."""
    if cpu_has_bfloat16():
        yield "openvino-bfloat16", [(whole, "bf16")]
        network = bundle.network()
        for seam in seams(network):
            models = [
                (openvino().convert_model(compiled(part)) if has_tensorflow() else traced(part), precision)
                for part, precision in ((up_to(network, seam), "f32"), (behind(network, seam), "bf16"))
            ]
            yield engine_name("openvino", seam), models
    yield "openvino-float32", [(whole, "f32")]


if __name__ == "__main__":
    # The calling process decided whether the bundle may be untrained.
    convert(load_bundle(Path(sys.argv[1]), allow_untrained=True), Path(sys.argv[2]))
