from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.crops import small_crops, small_network, small_split
from tests.support.repository import ROOT
from training.errors import RunError
from training.fit import (
    PAPER,
    Batches,
    Epoch,
    Recipe,
    _finished,
    _learning_rate,
    fit,
    load_run,
    measure_batch_norm,
    part_of,
    predict,
)
from training.roi_cache import Crops

RECIPE = Recipe(init="none", epochs=3, batch=8, optimizer="sgd", warm_up=0, learning_rate=0.05, bn_batches=2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    return small_crops(tmp_path_factory.mktemp("data") / "crops")


@pytest.fixture(scope="module")
def whole(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    fit(RECIPE, crops, small_split(crops), folder, build=small_network)
    return folder


class Killed(BaseException):
    """Stands in for a signal: nothing of the code under test catches it."""


@pytest.mark.parametrize("epoch, step", [(1, 2), (2, 1), (3, 3)])
def test_a_run_cut_short_in_any_epoch_ends_as_if_it_had_not_been(
    crops: Crops, whole: Path, tmp_path: Path, epoch: int, step: int
) -> None:
    def report(what: str, done: int, of: int) -> None:
        if (what, done) == (f"epoch {epoch}", step):
            raise Killed

    split = small_split(crops)
    with pytest.raises(Killed):
        fit(RECIPE, crops, split, tmp_path / "run", build=small_network, report=report)
    assert not (tmp_path / "run" / "final.npz").exists()
    fit(RECIPE, crops, split, tmp_path / "run", build=small_network)
    with np.load(whole / "final.npz") as expected, np.load(tmp_path / "run" / "final.npz") as found:
        assert expected.files == found.files
        for name in expected.files:
            if name != "about":
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)
    assert (tmp_path / "run" / "log.csv").read_text() == (whole / "log.csv").read_text()


def test_a_half_written_checkpoint_is_never_read(crops: Crops, tmp_path: Path) -> None:
    split = small_split(crops)
    fit(RECIPE, crops, split, tmp_path / "run", build=small_network, until=1)
    (tmp_path / "run" / "state.npz.partial").write_bytes(b"half")
    _, log = fit(RECIPE, crops, split, tmp_path / "run", build=small_network)
    assert [line.epoch for line in log] == [1, 2, 3]


def test_the_run_says_what_it_was_made_of(crops: Crops, whole: Path) -> None:
    run = json.loads((whole / "run.json").read_text())
    assert run["recipe"]["seed"] == 0 and run["crops"]["digest"] == crops.digest
    assert run["split"]["test"]["samples"] == small_split(crops).test.samples.tolist()
    assert run["versions"]["backend"]
    with (whole / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_another_recipe_or_split_does_not_go_on_in_its_folder(crops: Crops, whole: Path) -> None:
    with pytest.raises(RunError, match="another recipe, data or split"):
        fit(replace(RECIPE, seed=1), crops, small_split(crops), whole, build=small_network)
    with pytest.raises(RunError, match="another recipe, data or split"):
        fit(RECIPE, crops, small_split(crops, "paper"), whole, build=small_network)


def test_the_final_weights_load_and_predict_in_the_order_of_the_part(crops: Crops, whole: Path) -> None:
    model, run = load_run(whole, small_network)
    part = part_of(crops, [5, 3, 20, 4, 7])
    together = predict(model, crops, part, batch=4)
    alone = [predict(model, crops, part_of(crops, [number]), batch=4)[0] for number in part.samples]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert run["log"][-1]["epoch"] == 3


def test_an_unfinished_run_is_not_loaded(crops: Crops, tmp_path: Path) -> None:
    fit(RECIPE, crops, small_split(crops), tmp_path / "run", build=small_network, until=1)
    with pytest.raises(RunError, match="did not finish"):
        load_run(tmp_path / "run", small_network)
    with pytest.raises(RunError, match="holds no run"):
        load_run(tmp_path / "nowhere", small_network)


def test_a_loss_that_is_no_number_stops_with_one_line(crops: Crops, tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30)
    with pytest.raises(RunError, match=r"^the loss is not a number in epoch \d: lower the learning rate"):
        fit(recipe, crops, small_split(crops), tmp_path / "run", build=small_network)
    assert not (tmp_path / "run" / "final.npz").exists()


def test_unknown_schedule_and_augmentation_are_refused(crops: Crops, tmp_path: Path) -> None:
    for change in ({"schedule": "stairs"}, {"augmentation": "wild"}, {"optimizer": "none"}):
        with pytest.raises(RunError, match="there is no"):
            fit(replace(RECIPE, **change), crops, small_split(crops), tmp_path / "run", build=small_network)


def test_moving_averages_become_the_mean_over_the_batches(tmp_path: Path) -> None:
    crops = small_crops(tmp_path / "crops", 16)
    model = small_network(RECIPE, crops.pixels.shape[1])
    batches = Batches(crops, part_of(crops), 8)
    measure_batch_norm(model, batches, 2)
    norm = model.get_layer("norm")
    outputs = [np.asarray(model.layers[0](batches[number][0])) for number in range(2)]
    means = np.mean([output.mean(axis=(0, 1, 2)) for output in outputs], axis=0)
    variances = np.mean([output.var(axis=(0, 1, 2)) for output in outputs], axis=0)
    np.testing.assert_allclose(np.asarray(norm.moving_mean), means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(norm.moving_variance), variances, rtol=1e-4)
    assert norm.momentum == 0.99


def test_batches_hold_every_sample_once_and_repeat_for_the_same_epoch(crops: Crops) -> None:
    part = part_of(crops)

    def pixels(epoch: int) -> np.ndarray:
        batches = Batches(crops, part, 8, augmentation="fly", seed=3, epoch=epoch)
        return np.concatenate([batches[number][0] for number in range(len(batches))])

    np.testing.assert_array_equal(pixels(0), pixels(0))
    assert (pixels(0) != pixels(1)).any()
    plain = Batches(crops, part, 8, seed=3)
    seen = np.concatenate([plain[number][0] for number in range(len(plain))])[..., 0]
    stored = np.stack([crops.roi(number) for number in range(len(crops))])
    assert sorted(roi.sum() for roi in seen) == pytest.approx(sorted(roi.sum() for roi in stored))


def epochs(*losses: float) -> list[Epoch]:
    return [Epoch(number, 0.0, 0.0, loss, 0.0, 0.0) for number, loss in enumerate(losses, 1)]


def test_the_papers_schedule() -> None:
    paper = Recipe(schedule="plateau", learning_rate=1.0, epochs=50)
    worse = [1.0] + [1.1] * 7
    assert _learning_rate(paper, epochs(*worse[:-1])) == 1.0
    assert _learning_rate(paper, epochs(*worse)) == pytest.approx(0.2)
    assert _learning_rate(paper, epochs(*worse, *[1.1] * 7)) == pytest.approx(0.04)
    assert _learning_rate(paper, epochs(*worse, 0.9, *[1.1] * 6)) == pytest.approx(0.2)
    assert not _finished(paper, epochs(1.0, *[1.0] * 12))
    assert _finished(paper, epochs(1.0, *[1.0] * 13))
    assert not _finished(paper, epochs(1.0, *[1.1] * 12, 0.9))


def test_the_rate_rises_in_equal_steps_before_the_cosine() -> None:
    recipe = Recipe(epochs=6, learning_rate=3.0, warm_up=2)
    rates = [_learning_rate(recipe, epochs(*[1.0] * done)) for done in range(6)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert rates[4] == pytest.approx(1.5)  # half-way through the four epochs of the cosine


def test_the_papers_recipe_is_the_papers() -> None:
    """Paper, Training: SGD, 1e-4, 50 epochs, batch 16, dropout 0.5; momentum is not stated."""
    assert (PAPER.optimizer, PAPER.learning_rate, PAPER.momentum, PAPER.warm_up) == ("sgd", 1e-4, 0.0, 0)
    assert (PAPER.epochs, PAPER.batch, PAPER.dropout, PAPER.schedule) == (50, 16, 0.5, "plateau")


def test_the_cosine_schedule_halves_half_way() -> None:
    recipe = Recipe(epochs=10, learning_rate=1.0, warm_up=0)
    rates = [_learning_rate(recipe, epochs(*[1.0] * done)) for done in range(10)]
    assert rates[0] == 1 and rates[5] == pytest.approx(0.5) and rates == sorted(rates, reverse=True)
    assert _finished(recipe, epochs(*[1.0] * 10)) and not _finished(recipe, epochs(*[1.0] * 9))


def test_tensorboards_log_is_read_by_tensorflow(whole: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    from tensorflow.core.util.event_pb2 import Event

    (path,) = (whole / "tensorboard").iterdir()
    # TFRecordDataset checks both checksums of each record.
    events = [Event.FromString(record.numpy()) for record in tensorflow.data.TFRecordDataset(str(path))]
    assert events[0].file_version == "brain.Event:2"
    assert [event.step for event in events[1:]] == [1, 2, 3]
    run = csv.DictReader((whole / "log.csv").open(newline=""))
    for event, row in zip(events[1:], run, strict=True):
        scalars = {value.tag: value.simple_value for value in event.summary.value}
        assert scalars["validation_loss"] == pytest.approx(float(row["validation_loss"]), rel=1e-6)


_TWO_DEVICES = """
import sys
from dataclasses import replace
from pathlib import Path

import keras

from tests.support.crops import small_crops, small_network, small_split
from training.fit import Recipe, fit

folder = Path(sys.argv[1])
crops = small_crops(folder / "crops")
recipe = Recipe(init="none", epochs=2, batch=8, learning_rate=0.05, dropout=0.0)
for devices in (1, 2):
    fit(replace(recipe, devices=devices), crops, small_split(crops), folder / f"run{devices}", build=small_network)
assert len(keras.distribution.distribution().device_mesh.devices.flat) == 2
"""


def test_two_devices_learn_what_one_learns(tmp_path: Path) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    # JAX makes two devices of one processor.
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    flags["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _TWO_DEVICES, tmp_path]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "run1" / "final.npz") as one, np.load(tmp_path / "run2" / "final.npz") as two:
        for name in set(one.files) - {"about"}:
            np.testing.assert_allclose(two[name], one[name], atol=1e-5)
