"""Combine lesions into findings: the lesions of one breast on CC and MLO, whose logits are averaged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.orientation import mean_logit
from training import metrics
from training.roi_cache import Crops
from training.split import Part

_VIEWS = {"CC", "MLO"}


@dataclass(frozen=True, eq=False)
class Finding:
    """Hold one breast seen on both views: the places (K,) of its lesions in their part, and its labels."""

    places: np.ndarray
    patient: str
    malignant: bool


@dataclass(frozen=True)
class FindingFigures:
    """Hold the AUC of findings, of the same lesions one by one, and the gain.

    Each is (value, low, high); intervals are by patient.
    """

    findings: int
    malignant: int
    lesions: int
    patients: int
    auc: tuple[float, float, float]
    auc_of_lesions: tuple[float, float, float]
    gain: tuple[float, float, float]


def findings_of(crops: Crops, part: Part) -> list[Finding]:
    """Return the breasts of `part` that have lesions on CC and on MLO.

    A finding is malignant if any lesion of it is. Data sets that name no side and view have none.
    """
    breasts: dict[tuple[str, str], list[int]] = {}
    for place, number in enumerate(part.samples):
        entry = crops.entries[number]
        if "side" in entry.descriptors and entry.descriptors.get("view") in _VIEWS:
            breasts.setdefault((entry.patient, entry.descriptors["side"]), []).append(place)
    found = []
    for (patient, _), places in breasts.items():
        entries = [crops.entries[part.samples[place]] for place in places]
        if {entry.descriptors["view"] for entry in entries} == _VIEWS:
            found.append(Finding(np.array(places), patient, any(entry.malignant for entry in entries)))
    return found


def finding_scores(findings: list[Finding], probability: np.ndarray) -> np.ndarray:
    """Return each finding's probability (F,): the mean logit of its lesions' `probability` (N,)."""
    return np.array([mean_logit(probability[finding.places][:, None])[0] for finding in findings])


def finding_figures(crops: Crops, part: Part, probability: np.ndarray, draws: int = 2000) -> dict[str, Any] | None:
    """Return `FindingFigures` as a dict, or None if there are no findings of both kinds."""
    findings = findings_of(crops, part)
    truth = np.array([finding.malignant for finding in findings], bool)
    if truth.all() or not truth.any():
        return None
    places = np.concatenate([finding.places for finding in findings])
    lesion_truth, lesion_patients = (values[part.samples[places]] for values in (crops.malignant, crops.patients))
    score, patients = finding_scores(findings, probability), np.array([finding.patient for finding in findings])
    figures = FindingFigures(
        findings=len(findings),
        malignant=int(truth.sum()),
        lesions=len(places),
        patients=len(np.unique(patients)),
        auc=(metrics.auc(score, truth), *metrics.interval(metrics.auc, score, truth, patients, draws=draws)),
        auc_of_lesions=(
            metrics.auc(probability[places], lesion_truth),
            *metrics.interval(metrics.auc, probability[places], lesion_truth, lesion_patients, draws=draws),
        ),
        gain=_gain(findings, score, probability, lesion_truth, places, draws),
    )
    return asdict(figures)


def _gain(
    findings: list[Finding],
    score: np.ndarray,
    probability: np.ndarray,
    lesion_truth: np.ndarray,
    places: np.ndarray,
    draws: int,
) -> tuple[float, float, float]:
    """Return by how much the AUC of findings exceeds that of their lesions, on the same draws of patients."""
    truth = np.array([finding.malignant for finding in findings], bool)
    ends = np.cumsum([len(finding.places) for finding in findings])
    lesions = [np.arange(end - len(finding.places), end) for end, finding in zip(ends, findings, strict=True)]

    def difference(numbers: np.ndarray) -> float:
        drawn = np.concatenate([lesions[number] for number in numbers])
        return metrics.auc(score[numbers], truth[numbers]) - metrics.auc(
            probability[places][drawn], lesion_truth[drawn]
        )

    patients = np.array([finding.patient for finding in findings])
    generator, values = np.random.default_rng(0), []
    names = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    for _ in range(draws if len(names) >= metrics.FEWEST_PATIENTS else 0):
        value = difference(np.concatenate([names[n] for n in generator.integers(0, len(names), len(names))]))
        values.append(value)
    low, high = np.nanpercentile(values, [2.5, 97.5]) if values else (np.nan, np.nan)
    return difference(np.arange(len(findings))), float(low), float(high)
