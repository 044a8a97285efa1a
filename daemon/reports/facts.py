"""What every kind of report is made from, and the sentences that mark its content as research."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.lesion import LeftOut, Lesion
from model.prediction import Prediction
from model.roi import Box

RESEARCH_USE = (
    "RESEARCH USE ONLY. Not a medical device: not for diagnosis, screening or treatment. "
    "Computed by a program; not verified by any person."
)
UNTRAINED = "The model is UNTRAINED: it has learned nothing; every probability and class in this report is meaningless."


@dataclass(frozen=True)
class Algorithm:
    """The facts of the bundle that made the predictions.

    `device_uid` comes from the bundle's digest (`daemon.uids.device_uid`); `threshold` is the probability (0..1) from
    which a lesion is called malignant; `intended_use` is the manifest's own sentence.
    """

    name: str
    version: str
    device_uid: str
    trained: bool
    threshold: float
    intended_use: str


@dataclass(frozen=True, eq=False)
class Result:
    """One lesion and what the classifier said of it.

    `box`, `padded`, `mm_per_pixel` and `spacing_assumed` are those of the `model.roi.Roi` that was classified.
    """

    lesion: Lesion
    prediction: Prediction
    box: Box
    padded: float
    mm_per_pixel: float | None
    spacing_assumed: bool


def report_statements(algorithm: Algorithm, left_out: Sequence[LeftOut]) -> list[str]:
    """What a reader must know of the whole report, most important first."""
    statements = [RESEARCH_USE]
    if not algorithm.trained:
        statements.append(UNTRAINED)
    if intended_use := algorithm.intended_use.strip().rstrip("."):
        statements.append(f"Intended use of the model: {intended_use}.")
    statements.append(
        f"A lesion is called malignant from a probability of {100 * algorithm.threshold:.2f} % on, otherwise benign."
    )
    statements.extend(f"Not classified: {item.what}: {item.reason.rstrip('.')}." for item in left_out)
    return statements


def lesion_statements(result: Result, algorithm: Algorithm) -> list[str]:
    """What a reader must know of one lesion's result."""
    statements = [] if algorithm.trained else [UNTRAINED]
    if result.spacing_assumed:
        assumed = "" if result.mm_per_pixel is None else f" {result.mm_per_pixel:.4g} mm per pixel"
        statements.append(
            f"The image does not give its pixel spacing:{assumed or ' a value'} was ASSUMED to cut out the lesion."
        )
    box = result.box
    statements.append(
        f"Region given to the model: columns {box.left:.1f} to {box.right:.1f}, "
        f"rows {box.top:.1f} to {box.bottom:.1f}, of which {100 * result.padded:.0f} % lies outside the image."
    )
    return statements
