"""What every kind of report is made from, and the sentences that mark its content as research."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydicom.dataset import Dataset

from daemon.dicom.uids import report_series_uid, report_uid
from daemon.lesions.lesion import LeftOut, Lesion
from daemon.reports.display_image import View
from model.prediction import Prediction
from model.roi import Roi

RESEARCH_USE = (
    "RESEARCH USE ONLY. Not a medical device: not for diagnosis, screening or treatment. "
    "Computed by a program; not verified by any person."
)
UNTRAINED = "The model is UNTRAINED: it has learned nothing; every probability and class in this report is meaningless."
DESCRIPTION = "RESEARCH ONLY: probability of cancer of marked lesions"
DESCRIPTION_UNTRAINED = "RESEARCH ONLY: UNTRAINED MODEL, result is meaningless"


@dataclass(frozen=True)
class Measured:
    """A figure of the bundle with its 95 % interval, where one was measured, and on how many lesions of what."""

    name: str
    value: float
    low: float | None
    high: float | None
    data: str
    count: int


@dataclass(frozen=True)
class Algorithm:
    """The facts of the bundle that made the predictions.

    `device_uid` comes from the bundle's digest (`daemon.dicom.uids.device_uid`); `threshold` is the probability (0..1) from
    which a lesion is called malignant; `intended_use` is the manifest's own sentence. `temperature` is what the network's
    logit is divided by (1: probabilities as the network gives them); `measured` is what is known of its performance.
    `kinds`, `image_types` and `views` are those that the bundle may be used for (`model.bundle.Description`).
    """

    name: str
    version: str
    device_uid: str
    trained: bool
    threshold: float
    intended_use: str
    temperature: float = 1.0
    measured: tuple[Measured, ...] = ()
    kinds: tuple[str, ...] = ()
    image_types: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """One lesion, what was cut out of the image for it, and what the classifier said of that."""

    lesion: Lesion
    roi: Roi
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class Case:
    """What every kind of report is made of: one lesion object, its images, and what was found.

    `source` is the lesion object (a SEG or SR; its header is enough). `images` are headers by SOP Instance UID, at least
    every image that a lesion lies on, best as just read from a file: attributes that were not decoded yet are copied
    byte for byte. `results` are in the order of the report. `left_out` is what the lesion object holds and was not
    classified. `views` are by image and frame, every frame with a lesion, for kinds that show pixels (`WITH_PICTURES`).
    `notes` are sentences on how the lesion object was read.
    """

    source: Dataset
    images: Mapping[str, Dataset]
    results: Sequence[Result]
    algorithm: Algorithm
    left_out: Sequence[LeftOut] = ()
    views: Mapping[tuple[str, int], View] = field(default_factory=dict)
    notes: Sequence[str] = ()


Predecessor = tuple[str, str, str, str]
"""SOP Class, SOP Instance, Series Instance and Study Instance UID of the report that a new one replaces."""


@dataclass(frozen=True)
class Edition:
    """One writing of one kind of report on a case: its UIDs, when, and the report that it replaces, if any.

    `written_at` with a time zone is told in that of the image, where the image has one. A kind that makes one object
    for each image derives the UIDs of each from a `part` of its own, such as the image's SOP Instance UID.
    """

    kind: str
    source_uid: str
    digest: str
    bundle: str
    written_at: datetime
    predecessor: Predecessor | None = None

    def sop_instance_uid(self, part: str = "") -> str:
        return report_uid(self.source_uid, self.digest, self.bundle, self.kind, part)

    def series_instance_uid(self, part: str = "") -> str:
        return report_series_uid(self.source_uid, self.digest, self.bundle, self.kind, part)


def series_description(algorithm: Algorithm) -> str:
    """What a list of series shows of every object of ours."""
    return DESCRIPTION if algorithm.trained else DESCRIPTION_UNTRAINED


def short_result(prediction: Prediction, algorithm: Algorithm) -> str:
    """Class and probability as they are drawn on an image, such as "malignant 0.87".

    Two digits, and more where two would put the probability on the wrong side of the threshold ("benign 0.498"); none is
    said to be 0 or 1.
    """
    digits = 2
    while digits < 6 and (round(prediction.probability, digits) >= algorithm.threshold) != prediction.malignant:
        digits += 1
    number = f"{prediction.probability:.{digits}f}"
    called = "malignant" if prediction.malignant else "benign"
    return f"{called} {({'0.00': '<0.01', '1.00': '>0.99'}).get(number, number)}"


def percent(probability: float) -> float:
    """Two digits after the point, and up to six where fewer would say that it is 0 or 100 %."""
    digits = 2
    while digits < 6 and round(100 * probability, digits) in (0, 100):
        digits += 1
    return round(100 * probability, digits)


def in_full(number: float) -> str:
    """Two digits after the point, and as many more as it has (six at most), as a result just below may need them too."""
    whole, _, digits = f"{number:.6f}".partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def report_statements(algorithm: Algorithm, left_out: Sequence[LeftOut], notes: Sequence[str] = ()) -> list[str]:
    """What a reader must know of the whole report, most important first."""
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
    """What a reader must know of a report that has no result; the second says why."""
    why = "Failed: the marked lesions were NOT classified" if failed else "There was nothing to classify"
    statements = [RESEARCH_USE, f"{why}: {reason.rstrip('.')}. This says nothing of the images."]
    if not algorithm.trained:
        statements.append(UNTRAINED)
    return statements + [f"Not classified: {item.what}: {item.reason.rstrip('.')}." for item in left_out]


def _calibration(algorithm: Algorithm) -> str:
    """How far a probability may be taken at its word."""
    if algorithm.temperature != 1:
        made = f"The probabilities are calibrated (temperature {algorithm.temperature:.4g})."
    else:
        made = "The probabilities are as the network gives them; the bundle states no calibration."
    return f"{made} No confidence interval of a single probability is known."


def _figure(measured: Measured) -> str:
    interval = ""
    if measured.low is not None and measured.high is not None:
        interval = f" (95 % confidence interval {measured.low:.3g} to {measured.high:.3g})"
    return f"{measured.name} {measured.value:.3g}{interval} on {measured.count} lesions of {measured.data}"


def lesion_statements(result: Result, algorithm: Algorithm) -> list[str]:
    """What a reader must know of one lesion's result."""
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
    """What a repetition of the work has to use again; `engine` is None where nothing was classified."""
    parameters = [f"threshold={algorithm.threshold:g}", f"temperature={algorithm.temperature:g}"]
    if engine is not None:
        parameters.append(f"engine={engine}")
    return [*parameters, f"bundle={bundle}", f"trained={'yes' if algorithm.trained else 'NO'}"]
