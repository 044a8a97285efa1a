"""What a bundle says of how far its probability may be taken at its word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.bundle import card
from model.calibration import at_prevalence, calibrate
from model.familiarity import distance, familiar_from, is_unlike_training, pixel_statistics
from model.manifest import Rate, Undecided
from tests.support.bundles import small_bundle


def test_temperature_and_bias_act_on_the_logit() -> None:
    p = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(calibrate(p, 1.0), p, atol=1e-6)
    # The odds of 1/9, 1 and 9: their root, times e^0.5.
    odds = np.sqrt([1 / 9, 1, 9]) * np.exp(0.5)
    np.testing.assert_allclose(calibrate(p, 2.0, 0.5), odds / (1 + odds), atol=1e-6)


def test_a_probability_at_another_prevalence_is_bayes_rule() -> None:
    # Of 10,000 at 1 %: 100 malignant, of whom 80 % are called; 9,900 benign, of whom 20 % are.
    assert at_prevalence(0.8, 0.5, 0.01) == pytest.approx(80 / (80 + 0.2 * 9900))
    assert at_prevalence(0.3, 0.48, 0.48) == pytest.approx(0.3)


def films(count: int, grain: float, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:48, 0:48] / 48 - 0.5
    rois = []
    for _ in range(count):
        smooth = generator.uniform(0.3, 0.5) + generator.uniform(0.1, 0.3) * np.exp(-(x**2 + y**2) / 0.05)
        rois.append(np.clip(smooth + generator.normal(0, grain, (48, 48)), 0, 1))
    return rois


def test_rois_of_another_grain_are_unlike_and_the_same_kind_is_not() -> None:
    familiar = familiar_from(np.stack([pixel_statistics(roi) for roi in films(200, 0.02, 1)]), share=0.95)
    same = np.mean([is_unlike_training(roi, familiar) for roi in films(200, 0.02, 2)])
    other = np.mean([is_unlike_training(roi, familiar) for roi in films(50, 0.08, 3)])
    assert same < 0.15 and other > 0.9
    assert distance(films(1, 0.02, 4)[0], familiar) < familiar.limit * 2


def test_the_distance_is_in_standard_deviations_whatever_the_scales() -> None:
    statistics = np.random.default_rng(1).normal(0, 1, (4000, 3)) @ np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0.01]]) + 5
    familiar = familiar_from(statistics, share=0.9)
    distances = np.linalg.norm((statistics - familiar.mean) @ np.array(familiar.whitening).T, axis=1)
    assert np.mean(distances**2) == pytest.approx(3, rel=0.01)
    assert familiar.limit**2 == pytest.approx(6.25, rel=0.05)  # the 90 % point of chi-squared with 3 degrees of freedom


def test_the_card_states_prevalence_band_and_rates(tmp_path: Path) -> None:
    familiar = familiar_from(np.stack([pixel_statistics(roi) for roi in films(30, 0.02, 1)]))
    familiar = familiar.model_copy(
        update={
            "false_alarm": Rate(value=0.05, data="films of patients not seen", count=100),
            "detection": (Rate(value=0.5, data="other films", count=80),),
        }
    )
    band = Undecided(low=0.4, high=0.6, nominal=0.9, coverage=0.91, share=0.3, data="validation part", count=100)
    bundle = small_bundle(tmp_path / "b", prevalence=0.5, orientations=(0, 1, 2, 3), undecided=band, familiar=familiar)
    text = card(bundle)
    assert "Orientations averaged: 4 of 8" in text
    assert "50 % of the lesions are malignant" in text and "where 1 % are, 80 % reads 3.9 %" in text
    assert "from 0.400 to 0.600, at a coverage of 90 % for each class; measured 91.0 %, with 30 % undecided" in text
    assert "false alarms 5.0 % of films of patients not seen, 100 lesions; found 50.0 % of other films" in text
    assert band.decides(0.7) and not band.decides(0.6) and not band.decides(0.4)
