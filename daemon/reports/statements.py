"""The sentences of a report: the research notice, and what to know of the report and its lesions."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.lesions.lesion import LeftOut
from daemon.reports.case import Algorithm, Measured, Result
from model.prediction import Prediction

RESEARCH_USE = (
    "RESEARCH USE ONLY. Not a medical device: not for diagnosis, screening or treatment. "
    "Computed by a program; not verified by any person."
)
UNTRAINED = "The model is UNTRAINED: it has learned nothing; every probability and class in this report is meaningless."
RESEARCH_USE_SHORT = "RESEARCH USE ONLY - not a medical device"  # drawn on images
UNTRAINED_SHORT = "UNTRAINED MODEL - the results are meaningless"
DESCRIPTION = "RESEARCH ONLY: probability of cancer of marked lesions"
DESCRIPTION_UNTRAINED = "RESEARCH ONLY: UNTRAINED MODEL, result is meaningless"


def series_description(algorithm: Algorithm) -> str:
    """Return the series description of every object of ours."""
    return DESCRIPTION if algorithm.trained else DESCRIPTION_UNTRAINED


def short_result(prediction: Prediction, algorithm: Algorithm) -> str:
    """Return class and probability as they are drawn on an image, such as "malignant 0.87".

    There are two digits, or more if two would put the probability on the wrong side of the threshold
    ("benign 0.498"). No probability is shown as 0 or 1.
    """
    digits = 2
    while digits < 6 and (round(prediction.probability, digits) >= algorithm.threshold) != prediction.malignant:
        digits += 1
    number = f"{prediction.probability:.{digits}f}"
    called = "malignant" if prediction.malignant else "benign"
    return f"{called} {({'0.00': '<0.01', '1.00': '>0.99'}).get(number, number)}"


def percent(probability: float) -> float:
    """Return a probability in percent with two decimals, or up to six if fewer would make it 0 or 100 %."""
    digits = 2
    while digits < 6 and round(100 * probability, digits) in (0, 100):
        digits += 1
    return round(100 * probability, digits)


def in_full(number: float) -> str:
    """Return a number with two decimals, or as many more as it has, at most six.

    A result just below a threshold may need them to be told apart from it.
    """
    whole, _, digits = f"{number:.6f}".partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def report_statements(algorithm: Algorithm, left_out: Sequence[LeftOut], notes: Sequence[str] = ()) -> list[str]:
    """Return what a reader must know of the whole report, most important first."""
    statements = [RESEARCH_USE]
    if not algorithm.trained:
        statements.append(UNTRAINED)
    if intended_use := algorithm.intended_use.strip().rstrip("."):
        statements.append(f"Intended use of the model: {intended_use}.")
    statements.append(
        f"A lesion is called malignant from a probability of {in_full(100 * algorithm.threshold)} % on, otherwise benign."
    )
    statements.append(_calibration(algorithm))
    if algorithm.measured:
        statements.append(f"Measured: {'; '.join(map(_figure, algorithm.measured))}.")
    statements.extend(notes)
    statements.extend(f"Not classified: {item.what}: {item.reason.rstrip('.')}." for item in left_out)
    return statements


def without_result_statements(
    algorithm: Algorithm, failed: bool, reason: str, left_out: Sequence[LeftOut]
) -> list[str]:
    """Return what a reader must know of a report that has no result; the second statement says why."""
    why = "Failed: the marked lesions were NOT classified" if failed else "There was nothing to classify"
    statements = [RESEARCH_USE, f"{why}: {reason.rstrip('.')}. This says nothing of the images."]
    if not algorithm.trained:
        statements.append(UNTRAINED)
    return statements + [f"Not classified: {item.what}: {item.reason.rstrip('.')}." for item in left_out]


def _calibration(algorithm: Algorithm) -> str:
    """Return how far a probability can be trusted."""
    if algorithm.temperature != 1 or algorithm.bias:
        bias = f", bias {algorithm.bias:.4g}" if algorithm.bias else ""
        made = f"The probabilities are calibrated (temperature {algorithm.temperature:.4g}{bias})."
    else:
        made = "The probabilities are as the network gives them; the bundle states no calibration."
    if algorithm.prevalence is not None:
        made += f" They hold if {100 * algorithm.prevalence:.0f} % of the lesions are malignant, as in the data used for it."
    return f"{made} No confidence interval of a single probability is known."


def _figure(measured: Measured) -> str:
    interval = ""
    if measured.low is not None and measured.high is not None:
        interval = f" (95 % confidence interval {measured.low:.3g} to {measured.high:.3g})"
    return f"{measured.name} {measured.value:.3g}{interval} on {measured.count} lesions of {measured.data}"


def lesion_statements(result: Result, algorithm: Algorithm) -> list[str]:
    """Return what a reader must know of one lesion's result."""
    statements = [] if algorithm.trained else [UNTRAINED]
    roi, box = result.roi, result.roi.box
    if roi.spacing_assumed:
        assumed = "" if roi.mm_per_pixel is None else f" {roi.mm_per_pixel:.4g} mm per pixel"
        statements.append(
            f"The image does not give its pixel spacing:{assumed or ' a value'} was ASSUMED to cut out the lesion."
        )
    if result.lesion.region.graphic_type == "POINT":
        statements.append("Only a point was marked: the size of the lesion is not known.")
    statements.append(
        f"Region given to the model: columns {box.left:.1f} to {box.right:.1f}, "
        f"rows {box.top:.1f} to {box.bottom:.1f}, of which {100 * roi.padded:.0f} % lies outside the image."
    )
    return statements


def algorithm_parameters(algorithm: Algorithm, bundle: str, engine: str | None) -> list[str]:
    """Return what a repetition of the work needs; `engine` is None if nothing was classified."""
    parameters = [f"threshold={algorithm.threshold:g}", f"temperature={algorithm.temperature:g}"]
    if algorithm.bias:
        parameters.append(f"bias={algorithm.bias:g}")
    if engine is not None:
        parameters.append(f"engine={engine}")
    return [*parameters, f"bundle={bundle}", f"trained={'yes' if algorithm.trained else 'NO'}"]
