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

from tests.support.bundles import small_bundle
from tests.support.crops import small_crops, small_network, small_split
from tests.support.repository import ROOT
from training.batches import Batches, measure_batch_norm, part_of, predict, predict_rois
from training.errors import RunError
from training.fit import build_for, fit, load_run
from training.recipe import PAPER, Recipe, is_finished, learning_rate
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


def test_averaged_weights_go_on_after_a_kill_too_and_are_not_the_last_ones(crops: Crops, tmp_path: Path) -> None:
    recipe = replace(RECIPE, ema=0.9, augmentation="stable", bn_batches=0, epochs=2)

    def report(what: str, done: int, of: int) -> None:
        if (what, done) == ("epoch 2", 2):
            raise Killed

    split = small_split(crops)
    fit(recipe, crops, split, tmp_path / "whole", build=small_network)
    with pytest.raises(Killed):
        fit(recipe, crops, split, tmp_path / "cut", build=small_network, report=report)
    fit(recipe, crops, split, tmp_path / "cut", build=small_network)
    with np.load(tmp_path / "whole" / "final.npz") as whole, np.load(tmp_path / "cut" / "final.npz") as cut:
        averaged = {name: whole[name] for name in whole.files if name != "about"}
        for name, value in averaged.items():
            np.testing.assert_array_equal(cut[name], value)  # bit by bit: the same seed gives the same run
    with np.load(tmp_path / "whole" / "state.npz") as state:
        assert any((state[name] != value).any() for name, value in averaged.items())


def test_the_papers_copies_are_made_after_a_split_by_patient(crops: Crops, tmp_path: Path) -> None:
    split = small_split(crops, copies=True)
    plain = small_split(crops)
    assert len(split.train) == 6 * len(plain.train) and set(split.train.samples) == set(plain.train.samples)
    assert (split.validation.copies == -1).all() and (split.test.copies == -1).all()
    assert not set(crops.patients[split.train.samples]) & set(crops.patients[split.validation.samples])
    assert {tuple(pair) for pair in zip(split.train.samples, split.train.copies, strict=True)} == {
        (number, copy) for number in plain.train.samples for copy in range(6)
    }
    recipe = replace(PAPER, init="none", epochs=1, batch=8)
    steps: list[int] = []
    fit(recipe, crops, split, tmp_path / "run", build=small_network, report=lambda what, done, of: steps.append(of))
    assert steps[0] == 6 * len(plain.train) // 8  # the paper's number of updates
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["split"]["train"]["copies"] == split.train.copies.tolist()


def test_a_recipe_and_a_split_that_do_not_fit_are_refused(crops: Crops, tmp_path: Path) -> None:
    for recipe, split in (
        (replace(PAPER, init="none"), small_split(crops)),
        (RECIPE, small_split(crops, copies=True)),
        (RECIPE, small_split(crops, "paper")),
    ):
        with pytest.raises(RunError, match="copies go with 'copies' alone"):
            fit(recipe, crops, split, tmp_path / "run", build=small_network)
    assert not (tmp_path / "run").exists()


def test_predictions_average_the_orientations(crops: Crops, whole: Path) -> None:
    model, _ = load_run(whole, small_network)
    part = part_of(crops, [5, 3, 20])
    rois = np.stack([crops.roi(number) for number in part.samples])
    ways = [predict_rois(model, np.rot90(rois, turns, axes=(1, 2)), batch=4) for turns in range(4)]
    logit = np.mean([np.log(way / (1 - way)) for way in ways], axis=0)
    np.testing.assert_allclose(predict(model, crops, part, 4, orientations=4), 1 / (1 + np.exp(-logit)), rtol=1e-4)


def test_a_run_may_begin_from_a_bundle(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    recipe = replace(RECIPE, network="mobilenet_v2", head="plain", init=str(tmp_path / "bundle" / "weights.npz"))
    expected = bundle.network()
    for mine, theirs in zip(build_for(recipe, 96).weights, expected.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    with pytest.raises(RunError, match="holds no weights of mobilenet_v2"):
        build_for(replace(recipe, head="optimised"), 96)


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
    for change in ({"schedule": "stairs"}, {"augmentation": "wild"}, {"optimizer": "none"}, {"orientations": 3}):
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


def epochs(*losses: float) -> list[float]:
    return list(losses)


def test_the_papers_schedule() -> None:
    paper = Recipe(schedule="plateau", learning_rate=1.0, epochs=50)
    worse = [1.0] + [1.1] * 7
    assert learning_rate(paper, epochs(*worse[:-1])) == 1.0
    assert learning_rate(paper, epochs(*worse)) == pytest.approx(0.2)
    assert learning_rate(paper, epochs(*worse, *[1.1] * 7)) == pytest.approx(0.04)
    assert learning_rate(paper, epochs(*worse, 0.9, *[1.1] * 6)) == pytest.approx(0.2)
    assert not is_finished(paper, epochs(1.0, *[1.0] * 12))
    assert is_finished(paper, epochs(1.0, *[1.0] * 13))
    assert not is_finished(paper, epochs(1.0, *[1.1] * 12, 0.9))


def test_the_rate_rises_in_equal_steps_before_the_cosine() -> None:
    recipe = Recipe(epochs=6, learning_rate=3.0, warm_up=2)
    rates = [learning_rate(recipe, epochs(*[1.0] * done)) for done in range(6)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert rates[4] == pytest.approx(1.5)  # half-way through the four epochs of the cosine


def test_the_papers_recipe_is_the_papers() -> None:
    """Paper, Training: SGD, 1e-4, 50 epochs, batch 16, dropout 0.5; momentum is not stated."""
    assert (PAPER.optimizer, PAPER.learning_rate, PAPER.momentum, PAPER.warm_up) == ("sgd", 1e-4, 0.0, 0)
    assert (PAPER.epochs, PAPER.batch, PAPER.dropout, PAPER.schedule) == (50, 16, 0.5, "plateau")


def test_the_cosine_schedule_halves_half_way() -> None:
    recipe = Recipe(epochs=10, learning_rate=1.0, warm_up=0)
    rates = [learning_rate(recipe, epochs(*[1.0] * done)) for done in range(10)]
    assert rates[0] == 1 and rates[5] == pytest.approx(0.5) and rates == sorted(rates, reverse=True)
    assert is_finished(recipe, epochs(*[1.0] * 10)) and not is_finished(recipe, epochs(*[1.0] * 9))


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
from training.fit import fit
from training.recipe import Recipe

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
