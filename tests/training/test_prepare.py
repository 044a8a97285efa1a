from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.crop import CropPolicy
from model.normalise import NormalisationPolicy
from training import prepare as cutting
from training.prepare import MARGIN, prepare
from training.roi_cache import open_cache
from training.samples import Reading, Sample, rectangle

CROP = CropPolicy(kind="pixels", side_px=20, size=32)
FILMS = 4


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    """Return four films with two lesions each, and one film that is no picture."""
    generator = np.random.default_rng(0)
    samples = []
    for film in range(FILMS):
        path = tmp_path / f"{film}.png"
        Image.fromarray(generator.integers(0, 256, (60, 60), np.uint8)).save(path)
        for number in range(2):
            outline = rectangle(20, 20 + number, 30, 40 + number)
            about = {"pathology": "BENIGN"}
            samples.append(
                Sample(f"{film}#{number}", "d", path, outline, False, f"p{film}", None, "mass", descriptors=about)
            )
    (tmp_path / "torn.png").write_bytes(b"torn")
    torn = Sample("torn", "d", tmp_path / "torn.png", rectangle(1, 1, 2, 2), False, "p", None, "mass")
    return Reading((*samples[:4], torn, *samples[4:]))


class Killed(BaseException):
    """Stands in for a signal: nothing of the code under test catches it."""


def test_a_preparation_that_was_killed_goes_on_to_the_same_cache(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(done: int, of: int) -> None:
        assert of == 2 * FILMS + 1
        if done == 6:
            raise Killed

    def go(folder: str, **given: object) -> None:
        prepare(reading, tmp_path / folder, CROP, NormalisationPolicy(), wide=True, **given)  # type: ignore[arg-type]

    with pytest.raises(Killed):
        go("cut short", report=report)
    journal = tmp_path / "cut short.partial" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"entry": {"iden')  # what was being written
    opened: list[Path] = []
    honest = cutting.open_frame
    monkeypatch.setattr(cutting, "open_frame", lambda path: opened.append(path) or honest(path))
    go("cut short")
    # Six of nine samples were done: both of two films, the torn one, and one of the third film.
    assert [path.name for path in opened] == ["2.png", "3.png"]
    go("whole")
    one, whole = open_cache(tmp_path / "cut short"), open_cache(tmp_path / "whole")
    assert one.entries == whole.entries and one.skipped == whole.skipped
    np.testing.assert_array_equal(one.pixels, whole.pixels)
    assert one.wide is not None and whole.wide is not None
    np.testing.assert_array_equal(one.wide, whole.wide)
    assert whole.entries[0].descriptors == {"pathology": "BENIGN"}
    assert json.loads((tmp_path / "whole" / "index.json").read_text())["skipped"][0]["where"] == "torn"


def test_another_policy_does_not_go_on_with_what_was_cut(reading: Reading, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        prepare(reading, tmp_path / "c", CROP, NormalisationPolicy(), report=stop)
    other = CropPolicy(kind="pixels", side_px=30, size=32)
    prepare(reading, tmp_path / "c", other, NormalisationPolicy())
    prepare(reading, tmp_path / "d", other, NormalisationPolicy())
    np.testing.assert_array_equal(open_cache(tmp_path / "c").pixels, open_cache(tmp_path / "d").pixels)


def test_the_wide_crop_shows_the_same_centre(reading: Reading, tmp_path: Path) -> None:
    crops = prepare(reading, tmp_path / "c", CROP, NormalisationPolicy(), wide=True)
    assert crops.margin == MARGIN and crops.source(0).shape == (64, 64)
    # 28 film pixels on 64: the middle 20 of them are the ROI.
    middle = crops.source(0)[9:55, 9:55].mean()
    assert middle == pytest.approx(crops.roi(0).mean(), abs=0.02)
    narrow = prepare(reading, tmp_path / "n", CROP, NormalisationPolicy())
    np.testing.assert_array_equal(narrow.source(1), narrow.roi(1))
    np.testing.assert_array_equal(narrow.pixels, crops.pixels)
