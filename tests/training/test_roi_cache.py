from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.crops import POLICY, SIZE, entry, small_crops
from training.errors import DataError
from training.roi_cache import Entry, open_cache, write_cache


def test_crops_come_back_to_sixteen_bits(tmp_path: Path) -> None:
    roi = np.random.default_rng(0).random((SIZE, SIZE))
    write_cache(tmp_path / "c", iter([(entry(0, malignant=True, patient="p"), roi)]), SIZE, 5, POLICY, [{"where": "w"}])
    crops = open_cache(tmp_path / "c")
    assert crops.pixels.shape == (1, SIZE, SIZE)  # room for five was made
    np.testing.assert_allclose(crops.roi(0), roi, atol=0.5 / 65535 + 1e-7)
    assert crops.entries == (entry(0, malignant=True, patient="p"),)
    assert crops.skipped == ({"where": "w"},) and crops.policy == POLICY


def test_a_cut_short_preparation_leaves_no_cache_and_can_be_done_again(tmp_path: Path) -> None:
    def breaks() -> Iterator[tuple[Entry, np.ndarray]]:
        yield entry(0, malignant=True, patient="p"), np.zeros((SIZE, SIZE))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "c", breaks(), SIZE, 2, POLICY, [])
    with pytest.raises(DataError, match="no whole crops cache"):
        open_cache(tmp_path / "c")
    with pytest.raises(DataError, match="no whole crops cache"):
        open_cache(tmp_path / "c.partial")
    assert len(small_crops(tmp_path / "c", 4)) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "index", "gone", "format"])
def test_a_damaged_cache_is_not_opened(tmp_path: Path, damage: str) -> None:
    folder = small_crops(tmp_path / "c", 4).folder
    pixels, index = folder / "crops.npy", folder / "index.json"
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-10])
    elif damage == "changed":
        pixels.write_bytes(pixels.read_bytes()[:-1] + b"?")
    elif damage == "index":
        index.write_text(index.read_text()[:-5])
    elif damage == "gone":
        pixels.unlink()
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    with pytest.raises(DataError, match="no whole crops cache"):
        open_cache(folder)


def test_nothing_to_cut_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample gave a crop; 1 were skipped; row 2: torn"):
        write_cache(tmp_path / "c", iter([]), SIZE, 1, POLICY, [{"where": "row 2", "reason": "torn"}])
    assert not (tmp_path / "c").exists()
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="exists already"):
        small_crops(tmp_path / "c")
