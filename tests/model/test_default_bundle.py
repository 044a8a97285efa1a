"""The bundle that comes with mammod: whole, trained, and honest about itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import model
from model.bundle import Bundle, card, load_bundle
from model.calibration import calibrate


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
    assert first.count == 762 and "5-fold by patient" in first.data
    assert manifest.licence == "research only"
    text = card(shipped)
    assert all(
        word in text for word in ("Masses only", "never measured on a digital mammogram", "Not a medical device")
    )
    # What the document says is what the card says.
    document = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text()
    assert f"{first.value:.3f} ({first.low:.3f} to {first.high:.3f})" in document


def test_it_looks_at_what_it_is_shown(shipped: Bundle) -> None:
    size = shipped.manifest.architecture.input_size
    assert shipped.manifest.crop.size == size
    y, x = (np.arange(size)[:, None] - size / 2) / size, (np.arange(size)[None] - size / 2) / size
    smooth = 0.3 + 0.5 * np.exp(-((y**2 + x**2) / 0.02))
    rays = 0.3 + 0.5 * np.exp(-((y**2 + x**2) / 0.02)) * (np.cos(9 * np.arctan2(y, x)) > 0)
    rois = np.stack([np.zeros((size, size)), smooth, rays]).astype(np.float32)[..., None]
    found = calibrate(np.asarray(shipped.network()(rois, training=False))[:, 0], shipped.manifest.temperature)
    assert ((found > 0) & (found < 1)).all() and np.ptp(np.log(found / (1 - found))) > 0.1
