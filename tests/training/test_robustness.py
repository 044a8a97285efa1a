from __future__ import annotations

import numpy as np
import pytest

from model.orientation import mean_logit, turn
from training.robustness import changes, flip_rate, in_all_orientations, robustness

ROIS = np.random.default_rng(0).random((6, 8, 8), dtype=np.float32)


def corner(rois: np.ndarray) -> np.ndarray:
    """Stand in for a network: the mean of a corner that no turn leaves in its place."""
    return rois[:, :2, :5].mean(axis=(1, 2)).astype(float)


@pytest.mark.parametrize("orientations", [1, 2, 4, 8])
def test_eight_passes_give_what_asking_each_turned_roi_gives(orientations: int) -> None:
    ways = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: tuple(range(8))}[orientations]
    found = in_all_orientations(corner, ROIS, orientations)
    for first in range(8):
        expected = mean_logit(np.stack([corner(turn(turn(ROIS, first), second)) for second in ways]))
        np.testing.assert_allclose(found[first], expected, rtol=1e-6)
    assert len(np.unique(found[:, 0].round(6))) == 8 // orientations


def test_a_flip_is_a_lesion_without_one_class() -> None:
    assert flip_rate(np.array([[0.4, 0.6, 0.7], [0.6, 0.9, 0.5]]), 0.5) == pytest.approx(1 / 3)


def test_robustness_measures_turns_and_changes() -> None:
    truth = corner(ROIS) > np.median(corner(ROIS))
    found = robustness(corner, ROIS, truth, threshold=float(np.median(corner(ROIS))))
    assert found["auc"] == 1 and 0 < found["flips"] <= 1
    assert set(found["auc_after"]) == set(changes())
    assert robustness(corner, ROIS, truth, orientations=8)["flips"] == 0
    # A monotone change of grey moves the corner's mean little: its order is kept nearly.
    assert found["auc_after"]["gamma 0.6"] > 0.8


def test_grain_and_blur_do_what_they_say() -> None:
    flat = np.full((1, 64, 64), 0.5, np.float32)
    assert changes()["grain of 2 %"](flat).std() == pytest.approx(0.02, rel=0.05)
    assert changes()["blur of 2 pixels"](ROIS).std() < ROIS.std() / 2
    np.testing.assert_allclose(changes()["gamma 1.6"](flat), 0.5**1.6, rtol=1e-5)
