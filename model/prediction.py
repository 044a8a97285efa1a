"""`Prediction`: what the classifier says of one ROI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """Probability of malignancy in [0, 1], the class at the bundle's threshold, and what made it.

    `bundle` is the bundle's digest (`Bundle.digest`), `engine` the engine's name with precision, such as
    `tensorflow-float32`.
    """

    probability: float
    malignant: bool
    engine: str
    bundle: str
