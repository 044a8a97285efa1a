"""`python -m model.engines.onednn_trial [BUNDLE]`: one side of the trial of oneDNN, as a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.engines.equivalence_check import trial_rois
from model.engines.onednn import Trial

_SIDE, _BATCH, _ROUNDS = 64, 8, 3


def _training_step() -> Trial:
    """Time a training step of three separable convolutions, the main part of Xception."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    stack = [layers.SeparableConv2D(192, 3, padding="same", activation="relu") for _ in range(3)]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((_SIDE, _SIDE, 1)), layers.Conv2D(64, 3), *stack, *head])
    model.compile("sgd", "binary_crossentropy", jit_compile=False)
    rois, labels = trial_rois(_SIDE)[:_BATCH, ..., None], np.arange(_BATCH)[:, None] % 2
    seconds = _fastest(lambda: model.train_on_batch(rois, labels))
    return Trial(seconds, tuple(np.asarray(model(rois))[:, 0].tolist()))


def _answers(bundle: Path) -> Trial:
    from model.bundle import load_bundle
    from model.engines.tensorflow import TensorFlowEngine

    engine = TensorFlowEngine(load_bundle(bundle, allow_untrained=True), _BATCH)
    rois = trial_rois(engine.size)[:_BATCH]
    return Trial(_fastest(lambda: engine.predict(rois)), tuple(engine.predict(rois).tolist()))


def _fastest(do: Callable[[], object]) -> float:
    do()
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    tried = _answers(Path(sys.argv[1])) if len(sys.argv) > 1 else _training_step()
    print(json.dumps({"seconds": tried.seconds, "answers": tried.answers}))
