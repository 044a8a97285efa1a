"""The bundle that comes with mammod: whole, trained, and honest about itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import model
from model.bundle import Bundle, card, load_bundle
from model.calibration import calibrate
from model.engines.equivalence_check import trial_rois
from model.engines.tensorflow import TensorFlowEngine
from model.orientation import turn


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(Path(model.__file__).parent / "bundles" / "default")


def test_it_is_trained_and_small_enough_for_a_repository(shipped: Bundle) -> None:
    assert shipped.manifest.trained and shipped.manifest.architecture.network == "xception_c"
    assert (shipped.path / "weights.npz").stat().st_size < 52_000_000


def test_its_card_tells_what_was_measured_and_its_limits(shipped: Bundle) -> None:
    manifest = shipped.manifest
    first = manifest.metrics[0]
    assert first.name == "AUC" and first.low is not None and first.low < first.value < (first.high or 0)
    assert first.count == 378 and "official test part" in first.data
    assert manifest.licence == "CC BY 3.0, attribution to CBIS-DDSM"
    text = card(shipped)
    assert all(
        word in text for word in ("Masses only", "never measured on a digital mammogram", "Not a medical device")
    )
    assert "CC BY 3.0" in text and "doi:10.7937/K9/TCIA.2016.7O02S9CY" in text
    assert "cross-validation: not measured yet" in text
    # What the document says is what the card says.
    document = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text()
    for metric in manifest.metrics:
        if metric.name.startswith("AUC") and metric.low is not None:
            assert f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})" in document


def test_its_answers_are_averaged_calibrated_and_stated_for_a_prevalence(shipped: Bundle) -> None:
    manifest = shipped.manifest
    assert manifest.orientations == (0, 1, 2, 3) and manifest.prevalence is not None and manifest.bias != 0
    assert manifest.undecided is not None and manifest.undecided.coverage == pytest.approx(0.9, abs=0.03)
    assert manifest.familiar is not None and manifest.familiar.false_alarm is not None
    size = manifest.architecture.input_size
    # What a lesion costs is at most twice what bundle 0.3 (one orientation of 160 pixels) took.
    assert len(manifest.orientations) * size**2 <= 2 * 160**2


def test_a_quarter_turn_does_not_change_what_it_says(shipped: Bundle) -> None:
    rois = trial_rois(shipped.manifest.architecture.input_size)[[5, 23]]
    engine = TensorFlowEngine(shipped, 8)
    once = engine.predict(rois)
    np.testing.assert_allclose(engine.predict(turn(rois, 1)), once, atol=1e-4)
    assert np.ptp(once) > 1e-3


def test_it_looks_at_what_it_is_shown(shipped: Bundle) -> None:
    size = shipped.manifest.architecture.input_size
    assert shipped.manifest.crop.size == size
    y, x = (np.arange(size)[:, None] - size / 2) / size, (np.arange(size)[None] - size / 2) / size
    smooth = 0.3 + 0.5 * np.exp(-((y**2 + x**2) / 0.02))
    rays = 0.3 + 0.5 * np.exp(-((y**2 + x**2) / 0.02)) * (np.cos(9 * np.arctan2(y, x)) > 0)
    rois = np.stack([np.zeros((size, size)), smooth, rays]).astype(np.float32)[..., None]
    found = calibrate(
        np.asarray(shipped.network()(rois, training=False))[:, 0], shipped.manifest.temperature, shipped.manifest.bias
    )
    assert ((found > 0) & (found < 1)).all() and np.ptp(np.log(found / (1 - found))) > 0.1
