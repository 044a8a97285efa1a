"""Classification in ms per ROI: mammod with and without its pool, predict(), ONNX Runtime and raw OpenVINO.

All run the same weights on the same ROIs, in this process except the pool. `mammod` is the engine that
"auto" selects, with ROIs submitted as by the service. Raw OpenVINO is the converted network in a single
precision; its bfloat16 probabilities may differ, so the difference is measured too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.case import Bar, Case, Row, Run, interleaved
from config.settings import Workers

if TYPE_CHECKING:
    from model.manifest import Manifest

BATCHES = (1, 8, 32)
ROIS = 64  # of one measurement, but for a batch of 1
POOL, TENSORFLOW, PREDICT = "mammod", "mammod, TensorFlow engine", "keras predict()"
ONNX, RAW, RAW32 = "ONNX Runtime", "raw OpenVINO bfloat16", "raw OpenVINO float32"


def _measure(run: Run, size: int | None) -> Iterator[Row]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from daemon.workers.bundle_source import default_bundle_path
    from daemon.workers.classifier_pool import ClassifierPool
    from model.bundle import load_bundle, untrained_bundle
    from model.engines.equivalence_check import trial_rois
    from model.engines.openvino import Graph, openvino
    from model.engines.tensorflow import TensorFlowEngine, tensorflow_engine

    bundle = untrained_bundle(run.folder / "bundle") if size else load_bundle(default_bundle_path())
    network = bundle.network()
    exact, plain = TensorFlowEngine(bundle, max(BATCHES)), tensorflow_engine(bundle, max(BATCHES))
    run.say(f"{plain.name}: {plain.why}")
    converted = openvino().convert_model(exact.function)
    raw = {RAW: Graph([(converted, "bf16")]), RAW32: Graph([(converted, "f32")])}
    onnx = _onnx_session(network, run.folder / "network.onnx")
    rois = trial_rois(bundle.manifest.architecture.input_size)
    probabilities = {name: (lambda part, graph=graph: graph(part)[0]) for name, graph in raw.items()}
    probabilities[ONNX] = lambda part: onnx.run(None, {"roi": part[..., None]})[0][:, 0]
    yield from _differences(exact.predict(rois), probabilities, rois, bundle.manifest)
    for batch in (1, 8) if run.tiny else BATCHES:
        fed = np.resize(rois, (batch, *rois.shape[1:]))
        turned = np.repeat(fed, len(bundle.manifest.orientations), axis=0)  # those without an engine do the same work
        rounds = 1 if run.tiny else max(1, (ROIS if batch > 1 else 16) // batch)
        pool = ClassifierPool(bundle, Workers(classifiers=1, max_batch=batch), cache=run.folder / "engine")
        pool.start()
        run.say(f"{pool.engine}: {pool.why}")
        try:
            contenders: dict[str, Callable[[], object]] = {
                POOL: partial(_through_pool, pool, fed, rounds),
                TENSORFLOW: partial(_repeat, partial(plain.predict, fed), rounds),
                PREDICT: partial(
                    _repeat, partial(network.predict, turned[..., None], batch_size=batch, verbose=0), rounds
                ),
                ONNX: partial(_repeat, partial(onnx.run, None, {"roi": turned[..., None]}), rounds),
                **{name: partial(_repeat, partial(graph, turned), rounds) for name, graph in raw.items()},
            }
            for warm in contenders.values():
                warm()
            yield from interleaved(
                run,
                f"batch {batch}",
                "ms/ROI",
                {name: partial(_timed, do, rounds * batch) for name, do in contenders.items()},
            )
        finally:
            pool.stop()


def _timed(do: Callable[[], object], rois: int, _pair: int) -> float:
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) / rois * 1000


def _repeat(do: Callable[[], object], rounds: int) -> None:
    for _ in range(rounds):
        do()


def _through_pool(pool: Any, rois: np.ndarray, rounds: int) -> None:
    """All at once, as jobs do; answers in the order of the ROIs."""
    for future in [pool.submit(roi) for _ in range(rounds) for roi in rois]:
        future.result()


def _differences(
    reference: np.ndarray, engines: dict[str, Callable[[np.ndarray], np.ndarray]], rois: np.ndarray, manifest: Manifest
) -> Iterator[Row]:
    from model.calibration import calibrate
    from model.orientation import averaged

    for name, predict in engines.items():
        raw, _ = averaged(partial(_without_map, predict), rois, manifest.orientations, 8)
        off = float(np.abs(calibrate(raw, manifest.temperature, manifest.bias) - reference).max())
        yield Row("largest difference from TensorFlow float32", name, 1, off, "of a probability")


def _without_map(ask: Callable[[np.ndarray], np.ndarray], rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ask(rois), np.zeros((len(rois), 1, 1))


def _onnx_session(network: Any, path: Path) -> Any:
    import onnxruntime

    from benchmarks.onnx_network import write_onnx

    write_onnx(network, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


_BARS = (
    Bar("batch 8", POOL, 1.1, RAW, at_most=True),
    Bar("batch 8", TENSORFLOW, 0.6, PREDICT, at_most=True),
)
CASES = (
    Case("classify", "the default bundle (160 pixels), ms a ROI", _BARS, partial(_measure, size=None)),
    Case("classify-299", "an untrained Xception-C of 299 pixels, ms a ROI", _BARS, partial(_measure, size=299)),
)
