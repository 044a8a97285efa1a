from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from model.bundle import MANIFEST, load_bundle, save_bundle
from model.engines import load_engine
from model.orientation import ORIENTATIONS, averaged, turn, turn_back
from tests.support.bundles import small_bundle, small_description


def ramp(size: int = 4) -> np.ndarray:
    return np.arange(2 * size * size, dtype=np.float32).reshape(2, size, size) / (2 * size * size)


def test_the_eight_orientations_differ_and_are_undone() -> None:
    rois = ramp()
    turned = [turn(rois, orientation) for orientation in range(ORIENTATIONS)]
    np.testing.assert_array_equal(turned[1][0], np.rot90(rois[0]))
    np.testing.assert_array_equal(turned[4][1], np.fliplr(rois[1]))
    assert len({one.tobytes() for one in turned}) == ORIENTATIONS
    for orientation, one in enumerate(turned):
        np.testing.assert_array_equal(turn_back(one, orientation), rois)


def corner(rois: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stand in for a network: the top-left pixel is the probability, and the ROI its heat map."""
    assert len(rois) <= 3
    return rois[:, 0, 0], rois


def test_the_mean_logit_over_the_quarter_turns_is_the_same_for_each_of_them() -> None:
    rois = ramp() * 0.8 + 0.1
    probability, maps = averaged(corner, rois, (0, 1, 2, 3), max_batch=3)
    corners = rois[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float64)
    logit = np.log(corners / (1 - corners)).mean(axis=1)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logit)), rtol=1e-6)
    np.testing.assert_allclose(maps, rois, rtol=1e-6)  # turned back, all four are the ROI itself
    for orientation in range(4):
        again, _ = averaged(corner, turn(rois, orientation), (0, 1, 2, 3), max_batch=3)
        np.testing.assert_allclose(again, probability, rtol=1e-6)


def test_one_orientation_changes_nothing_and_no_roi_gives_no_answer() -> None:
    probability, maps = averaged(corner, ramp(), (0,), max_batch=1)
    np.testing.assert_array_equal(probability, ramp()[:, 0, 0])
    np.testing.assert_array_equal(maps, ramp())
    for orientations in ((0,), (0, 2)):
        assert averaged(corner, ramp()[:0], orientations, max_batch=1)[0].shape == (0,)


def test_an_engine_averages_what_the_manifest_names(tmp_path: Path) -> None:
    plain = load_engine(small_bundle(tmp_path / "plain"), "tensorflow", max_batch=4)
    bundle = small_bundle(tmp_path / "turned", orientations=(0, 2), temperature=2.0, bias=0.25)
    with np.load(tmp_path / "plain" / "weights.npz") as arrays:
        model = bundle.network()
        for variable in model.weights:
            variable.assign(arrays[variable.path].astype(np.float32))

    same = save_bundle(tmp_path / "same", small_description(orientations=(0, 2), temperature=2.0, bias=0.25), model)
    engine = load_engine(same, "tensorflow", max_batch=4)
    rois = np.random.default_rng(2).random((3, 75, 75), dtype=np.float32)
    both = np.stack([plain.predict(rois), plain.predict(turn(rois, 2))]).astype(np.float64)
    logit = np.log(both / (1 - both)).mean(axis=0)
    np.testing.assert_allclose(engine.predict(rois), 1 / (1 + np.exp(-(logit / 2 + 0.25))), atol=1e-5)
    np.testing.assert_allclose(engine.predict(turn(rois, 2)), engine.predict(rois), atol=1e-5)
    maps, one, other = engine.heat_maps(rois), plain.heat_maps(rois), plain.heat_maps(turn(rois, 2))
    assert maps is not None and one is not None and other is not None
    np.testing.assert_allclose(maps, (one + turn_back(other, 2)) / 2, atol=1e-5)


def test_a_manifest_of_an_earlier_version_reads_as_one_orientation(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "b")

    manifest = json.loads((bundle.path / MANIFEST).read_text())
    for key in ("orientations", "bias", "prevalence", "undecided", "familiar"):
        del manifest[key]
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    old = load_bundle(bundle.path).manifest
    assert (old.orientations, old.bias, old.prevalence, old.undecided) == ((0,), 0.0, None, None)
    for wrong in ((), (8,), (-1,)):
        with pytest.raises(ValidationError):
            small_description(orientations=wrong)
