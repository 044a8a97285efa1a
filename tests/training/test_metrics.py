from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics
from training.measured import Figure

scored = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=40)


@given(scored)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    score, truth = np.array([row[0] / 10 for row in rows]), np.array([row[1] for row in rows])
    pairs = [(m > b) + 0.5 * (m == b) for m in score[truth] for b in score[~truth]]
    found = metrics.auc(score, truth)
    assert math.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))
    if pairs:  # and the area below the curve by trapezoids
        false_positive, true_positive, _ = metrics.roc(score, truth)
        assert np.trapezoid(true_positive, false_positive) == pytest.approx(found)


def test_figures_by_hand() -> None:
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.55, 0.97])
    truth = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], bool)
    # At 0.5: benign 0.5, 0.6, 0.7, 0.8, 0.9 and 0.95 are called malignant.
    assert metrics.confusion(score, truth) == [[4, 6], [0, 2]]
    assert metrics.accuracy(score, truth) == pytest.approx(6 / 12)
    # 90 % specificity leaves one benign above: the threshold is just over 0.9; one of two malignant is found.
    assert metrics.sensitivity_at(score, truth) == 0.5
    assert metrics.log_loss(np.array([0.5, 0.25]), np.array([True, False])) == pytest.approx(
        (math.log(2) - math.log(0.75)) / 2
    )


def test_interval_holds_the_value_and_is_wider_where_lesions_are_not_independent() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat(generator.random(100) < 0.5, 4)
    score = np.repeat(generator.normal(size=100), 4) + truth
    alone = metrics.interval(metrics.auc, score, truth, np.arange(400), draws=300)
    together = metrics.interval(metrics.auc, score, truth, np.repeat(np.arange(100), 4), draws=300)
    assert alone[0] < metrics.auc(score, truth) < alone[1]
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])  # twice, for four equal lesions a patient


def test_temperature_is_found_again() -> None:
    generator = np.random.default_rng(0)
    logit = generator.normal(size=20_000) * 2
    truth = generator.random(20_000) < 1 / (1 + np.exp(-logit))
    overconfident = 1 / (1 + np.exp(-3 * logit))
    assert metrics.fit_temperature(overconfident, truth) == pytest.approx(3, rel=0.05)
    assert metrics.calibration_error(overconfident, truth) > 0.05
    assert metrics.calibration_error(1 / (1 + np.exp(-logit)), truth) < 0.02


def test_threshold_of_the_highest_youden_index() -> None:
    score, truth = np.array([0.1, 0.2, 0.4, 0.6, 0.8]), np.array([0, 0, 1, 0, 1], bool)
    # At 0.4: sensitivity 1, specificity 2/3; at 0.8: 1/2 and 1. The threshold is half-way from 0.4 to 0.2.
    assert metrics.best_threshold(score, truth) == pytest.approx(0.3)


def test_reliability_bins() -> None:
    score, truth = np.array([0.05, 0.15, 0.95, 1.0]), np.array([0, 1, 1, 1], bool)
    assert metrics.reliability(score, truth) == [(0.05, 0.0, 1), (0.15, 1.0, 1), (pytest.approx(0.975), 1.0, 2)]


def test_of_a_handful_of_patients_there_is_no_interval() -> None:
    scores, truth = np.linspace(0, 1, 20), np.arange(20) % 2 == 0
    of_nine = metrics.interval(metrics.auc, scores, truth, np.arange(20) % 9)
    assert np.isnan(of_nine).all()
    assert np.isfinite(metrics.interval(metrics.auc, scores, truth, np.arange(20) % 10)).all()
    few = str(Figure(0.5, *of_nine))
    assert few == "0.500 (too few for an interval)"


def test_the_roc_curve_of_many_lesions_is_that_of_counting() -> None:
    generator = np.random.default_rng(4)
    truth, score = generator.random(300) < 0.4, generator.integers(0, 40, 300) / 40
    false_positive, true_positive, thresholds = metrics.roc(score, truth)
    assert thresholds[0] == np.inf and (np.diff(thresholds) < 0).all()
    for place, threshold in enumerate(thresholds):
        assert true_positive[place] == np.mean(score[truth] >= threshold)
        assert false_positive[place] == np.mean(score[~truth] >= threshold)
    many = generator.random(200_000)  # a table of all thresholds by all lesions would need 40 GB
    assert len(metrics.roc(many, many > 0.5)[0]) == 200_001


def test_temperature_and_bias_are_found_again() -> None:
    generator = np.random.default_rng(3)
    logit = generator.normal(0, 2, 20_000)
    truth = generator.random(20_000) < 1 / (1 + np.exp(-(logit / 2 - 0.7)))
    temperature, bias = metrics.fit_temperature_and_bias(1 / (1 + np.exp(-logit)), truth)
    assert temperature == pytest.approx(2, rel=0.1) and bias == pytest.approx(-0.7, abs=0.06)
