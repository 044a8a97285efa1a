from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import training_throughput
from tests.support.crops import small_crops, small_network
from training.recipe import Recipe


def test_both_ways_are_measured_on_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_throughput, "build_for", small_network)
    recipe = Recipe(init="none", batch=8)
    result = training_throughput.measure(small_crops(tmp_path / "crops"), recipe, steps=2, pairs=3)
    assert result["images"] == 16 and len(result["ratios"]) == 3  # type: ignore[arg-type]
    assert result["plain"] / result["ours"] == pytest.approx(result["ratio"])  # type: ignore[operator]
