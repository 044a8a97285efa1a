from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.crops import POLICY, SIZE, entry
from training.batches import part_of
from training.findings import finding_figures, finding_scores, findings_of
from training.roi_cache import Crops, write_cache


def breasts(folder: Path, count: int = 24) -> Crops:
    """Return patients with CC and MLO of the left breast, CC of the right; every second is malignant."""

    def made():  # type: ignore[no-untyped-def]
        for number in range(count):
            for side, view in (("LEFT", "CC"), ("LEFT", "MLO"), ("RIGHT", "CC")):
                one = entry(number, malignant=bool(number % 2), patient=f"patient {number}")
                about = {"side": side, "view": view, "pathology": "MALIGNANT" if number % 2 else "BENIGN"}
                yield replace(one, identity=f"{number} {side} {view}", descriptors=about), np.zeros((SIZE, SIZE))

    return write_cache(folder, made(), SIZE, 3 * count, POLICY, [])


def test_a_finding_is_a_breast_with_both_views_and_its_score_the_mean_logit(tmp_path: Path) -> None:
    crops = breasts(tmp_path / "c", 4)
    findings = findings_of(crops, part_of(crops))
    assert [finding.places.tolist() for finding in findings] == [[0, 1], [3, 4], [6, 7], [9, 10]]
    assert [finding.malignant for finding in findings] == [False, True, False, True]
    probability = np.full(12, 0.5)
    probability[:2] = 0.2, 0.9
    odds = np.sqrt(0.25 * 9)  # of odds, the geometric mean
    assert finding_scores(findings, probability)[0] == pytest.approx(odds / (1 + odds))
    # Of a part, the places are those of the part.
    assert findings_of(crops, part_of(crops, [4, 3]))[0].places.tolist() == [0, 1]


def test_averaging_views_whose_errors_differ_gains(tmp_path: Path) -> None:
    crops = breasts(tmp_path / "c", 60)
    generator = np.random.default_rng(1)
    probability = 1 / (1 + np.exp(-(np.where(crops.malignant, 0.7, -0.7) + generator.normal(0, 1, len(crops)))))
    found = finding_figures(crops, part_of(crops), probability, draws=200)
    assert found is not None and (found["findings"], found["lesions"], found["malignant"]) == (60, 120, 30)
    value, low, high = found["gain"]
    assert value == pytest.approx(found["auc"][0] - found["auc_of_lesions"][0]) and value > 0 and low < value < high
    scored = crops.malignant[[0, 1]]
    assert finding_figures(crops, part_of(crops, [0, 1]), probability[[0, 1]]) is None and not scored.any()
