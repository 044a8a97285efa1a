from __future__ import annotations

import numpy as np
import pytest

from training.augment import STABLE, Augmentation, augment, coarsen, paper_copy

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


def middle(size: int = 64) -> np.ndarray:
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
    return np.asarray(0.2 + 0.6 * np.exp(-(x**2 + y**2) / 0.02), np.float32)


def test_a_wide_crop_gives_a_roi_of_its_own_size_and_scale() -> None:
    """Of 1.4 times the side on twice the pixels, the ROI is the middle at 1.43 pixels each."""
    wide = middle(64)
    roi = augment(wide, np.random.default_rng(0), STILL, size=32, margin=1.4)
    assert roi.shape == (32, 32) and roi.dtype == np.float32
    y, x = (np.mgrid[0:32, 0:32] + 0.5) / 32 / 1.4 - 0.5 / 1.4
    np.testing.assert_allclose(roi, 0.2 + 0.6 * np.exp(-(x**2 + y**2) / 0.02), atol=0.02)


def changed(**what: float) -> np.ndarray:
    still = {"flips": False, "rotation": 0.0, "shift": 0.0, "contrast": 0.0, "brightness": 0.0}
    return augment(middle(), np.random.default_rng(3), Augmentation(**{**still, **what}))  # type: ignore[arg-type]


def test_each_change_of_the_stable_augmentation_does_what_it_says() -> None:
    roi = middle()
    edges = np.abs(np.diff(roi)).max()
    assert np.abs(np.diff(changed(blur=3.0, blur_share=1.0))).max() < edges
    assert np.abs(np.diff(changed(coarseness=8.0, resolution_share=1.0))).max() != edges
    grain = changed(grain=0.05, grain_share=1.0) - roi
    assert 0.002 < grain.std() < 0.05 and abs(grain.mean()) < 0.005
    curve = changed(gamma=2.0, gamma_share=1.0)
    exponent = np.log(curve) / np.log(roi)
    np.testing.assert_allclose(exponent, exponent[0, 0], rtol=1e-3)
    assert 0.5 <= exponent[0, 0] <= 2 and abs(exponent[0, 0] - 1) > 0.01
    assert 0 < np.abs(changed(jpeg_share=1.0) - roi).max() < 0.2
    # A wider field of view leaves a smaller lesion.
    assert (changed(zoom=1.6) > 0.5).sum() != (roi > 0.5).sum()


def test_coarsening_averages_and_enlarges() -> None:
    roi = np.zeros((8, 8), np.float32)
    roi[:4, :4] = 1
    small = coarsen(roi, 2)
    assert small.shape == (8, 8) and small[0, 0] == pytest.approx(1) and small[7, 7] == pytest.approx(0)
    assert 0 < small[3, 4] < 1


def test_the_stable_augmentation_stays_in_range() -> None:
    for seed in range(20):
        one = augment(middle(), np.random.default_rng(seed), STABLE, size=40, margin=1.4)
        assert one.shape == (40, 40) and one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
