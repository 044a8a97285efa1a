"""`python -m model.engines.convert BUNDLE FOLDER`: a bundle's network as OpenVINO reads it, and what TensorFlow says of it.

FOLDER gets the graphs (IR), `reference.npy` (TensorFlow float32 on the trial's ROIs) and `plan.json`: the fastest way of
running the graphs whose probabilities stay within the trial's limit (see `model.engines.precision_split`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import Bundle, load_bundle
from model.calibration import calibrate
from model.engines.equivalence_check import LIMIT, difference, trial_rois
from model.engines.hardware import cpu_has_bfloat16
from model.engines.openvino import PLAN, REFERENCE, Graph, openvino
from model.engines.precision_split import behind, engine_name, seams, up_to
from model.engines.tensorflow import TensorFlowEngine, compiled
from model.errors import EngineRefused
from model.orientation import averaged


def convert(bundle: Bundle, folder: Path) -> None:
    """Write what the module's words say.

    Raises:
        EngineRefused: not even float32 passes the trial.
        BundleError: the weights do not fit the architecture.
    """
    manifest = bundle.manifest
    size = manifest.architecture.input_size
    rois = trial_rois(size)
    exact = TensorFlowEngine(bundle)
    reference = exact.predict(rois)
    module = openvino()
    whole = module.convert_model(exact.function)
    refused = []
    for name, models in _plans(bundle, whole):
        graph = Graph(models)
        said, _ = averaged(graph, rois, manifest.orientations, 8)
        found = difference(calibrate(said, manifest.temperature, manifest.bias), reference)
        if found <= LIMIT:
            break
        refused.append(f"{name} {found:.3f}")
    else:
        raise EngineRefused(f"it differs from TensorFlow float32 by more than {LIMIT:g}: {', '.join(refused)}")
    parts = []
    for number, (model, precision) in enumerate(models):
        # Not in half precision on disk: batch normalisation's numbers are in here.
        module.save_model(model, folder / f"{number}.xml", compress_to_fp16=False)
        parts.append((f"{number}.xml", precision))
    np.save(folder / REFERENCE, reference, allow_pickle=False)
    plan = {"name": name, "parts": parts, "refused": refused}
    (folder / PLAN).write_text(json.dumps(plan, indent=1), encoding="utf-8")


def _plans(bundle: Bundle, whole: Any) -> Any:
    """(engine name, models with their precision), the fastest first."""
    if cpu_has_bfloat16():
        yield "openvino-bfloat16", [(whole, "bf16")]
        network = bundle.network()
        for seam in seams(network):
            models = [
                (openvino().convert_model(compiled(part)), precision)
                for part, precision in ((up_to(network, seam), "f32"), (behind(network, seam), "bf16"))
            ]
            yield engine_name("openvino", seam), models
    yield "openvino-float32", [(whole, "f32")]


if __name__ == "__main__":
    # The one who asked decided whether it may be untrained.
    convert(load_bundle(Path(sys.argv[1]), allow_untrained=True), Path(sys.argv[2]))
