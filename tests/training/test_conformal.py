from __future__ import annotations

import numpy as np
import pytest

from training.conformal import Band, fit_band, measured_coverage


def scores(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.random(count) < 0.5
    return 1 / (1 + np.exp(-(np.where(truth, 1, -1) + generator.normal(0, 1, count)))), truth


def test_the_limits_are_order_statistics_of_each_class() -> None:
    probability = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] * 2)
    truth = np.repeat([False, True], 9)
    # (1 - 0.8) x 10 = 2: the second lowest malignant and the second highest benign.
    band = fit_band(probability, truth, nominal=0.8)
    assert (band.low, band.high) == pytest.approx((0.2, 0.8))
    assert band.undecided(np.array([0.19, 0.2, 0.8, 0.81])).tolist() == [False, True, True, False]
    assert fit_band(probability, truth, nominal=0.95) == Band(0.0, 1.0)  # nine are too few for it


def test_new_lesions_are_covered_as_often_as_was_said() -> None:
    covered = []
    for seed in range(200):
        band = fit_band(*scores(60, seed), nominal=0.9)
        covered.append(band.covers(*scores(200, 1000 + seed)).mean())
    assert 0.89 < np.mean(covered) < 0.94  # at least the nominal, above it by at most 1 / (n + 1)


def test_coverage_by_cross_validation_is_near_the_nominal() -> None:
    probability, truth = scores(400, 5)
    patients = np.array([f"p{number // 2}" for number in range(400)])
    coverage, share = measured_coverage(probability, truth, patients, nominal=0.9, rounds=10)
    assert 0.88 < coverage < 0.93 and 0 < share < 0.6


def test_limits_that_crossed_leave_nothing_undecided() -> None:
    band = Band(0.6, 0.4)
    probability, truth = np.array([0.45, 0.55, 0.7]), np.array([False, True, False])
    assert not band.undecided(probability).any()
    assert band.covers(probability, truth).tolist() == [True, True, False]
