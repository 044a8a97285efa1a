"""`Prediction`: the classifier's answer for one ROI."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Probability of malignancy in [0, 1], the class at the bundle's threshold, bundle and engine.

    `bundle` is the bundle's digest (`Bundle.digest`), `engine` the engine's name with precision, such as
    `tensorflow-float32` or `openvino-bfloat16-after-block4`. `heat_map` is float32 (rows, columns), from 0
    up, a coarse grid over the whole ROI: each cell's contribution to the score
    (`model.engines.heat_map.grad_cam`); None if not requested or the engine has none.
    """

    probability: float
    malignant: bool
    engine: str
    bundle: str
    heat_map: np.ndarray | None = field(default=None, compare=False, repr=False)
