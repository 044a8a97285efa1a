from __future__ import annotations

import numpy as np
import pytest

from training.augment import Augmentation, augment, paper_copy

STILL = Augmentation(flips=False, rotation=0, shift=0, contrast=0, brightness=0)


def ramp(size: int = 9) -> np.ndarray:
    return np.arange(size * size, dtype=np.float32).reshape(size, size) / size**2


def test_nothing_allowed_changes_nothing() -> None:
    np.testing.assert_allclose(augment(ramp(), np.random.default_rng(0), STILL), ramp(), atol=1e-6)


def test_the_same_generator_gives_the_same_roi_and_stays_in_range() -> None:
    one, again = (augment(ramp(), np.random.default_rng(5), Augmentation()) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.dtype == np.float32 and one.shape == (9, 9) and one.min() >= 0 and one.max() <= 1
    assert (augment(ramp(), np.random.default_rng(6), Augmentation()) != one).any()


def test_rotation_turns_about_the_centre_and_keeps_its_pixel() -> None:
    roi = np.zeros((21, 21), np.float32)
    roi[10, 10] = 1
    for seed in range(5):
        turned = augment(roi, np.random.default_rng(seed), Augmentation(flips=False, shift=0, contrast=0, brightness=0))
        assert turned[10, 10] == pytest.approx(1)


def test_rotation_by_a_right_angle_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import augment as module

    np.testing.assert_allclose(module._move(ramp(), 90.0, np.zeros(2)), np.rot90(ramp(), -1), atol=1e-5)


def test_the_papers_copies() -> None:
    roi = ramp()
    copies = [paper_copy(roi, copy, np.random.default_rng(1)) for copy in range(6)]
    np.testing.assert_array_equal(copies[0], roi)
    np.testing.assert_array_equal(copies[1], np.flipud(roi))
    np.testing.assert_array_equal(copies[2], np.fliplr(roi))
    assert len({copy.tobytes() for copy in copies}) == 6
    with pytest.raises(ValueError, match="copy 6"):
        paper_copy(roi, 6, np.random.default_rng(1))
