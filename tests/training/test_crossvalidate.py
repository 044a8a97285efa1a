from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.networks import build_network
from tests.support.crops import small_crops, small_network, small_split
from training.batches import part_of
from training.crossvalidate import crossvalidate, show
from training.errors import DataError, RunError
from training.evaluate import evaluate_run
from training.export import export_run
from training.fit import build_for, fit
from training.measured import LesionSet
from training.paper_grid import Cell
from training.recipe import Recipe
from training.roi_cache import Crops
from training.split import split_samples

RECIPE = Recipe(init="none", epochs=2, batch=8, learning_rate=0.05)
CELLS = [Cell("xception_c", "optimised"), Cell("xception", "optimised")]
FOLDS = 3


def run(crops: Crops, out: Path, trained: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    def report(cell: Cell, fold: int) -> Any:
        if trained is not None:
            trained.append(f"{cell.name}-fold{fold}")
        return lambda what, done, of: None

    given: dict[str, Any] = {"folds": FOLDS, "report": report, "build": small_network, **changes}
    return crossvalidate(CELLS, RECIPE, "none", crops, out, **given)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    return small_crops(tmp_path_factory.mktemp("data") / "crops")


@pytest.fixture(scope="module")
def done(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cv") / "out"
    run(crops, out, external=[LesionSet("the same patients", crops, part_of(crops))])
    return out


def scores_of_test_parts(crops: Crops, out: Path, cell: Cell) -> dict[str, float]:
    """Read from the runs' own files: each lesion's score by the fold whose test part it is in."""
    found: dict[str, float] = {}
    for fold in range(FOLDS):
        folder = out / "runs" / f"{cell.name}-fold{fold}"
        split = json.loads((folder / "run.json").read_text())["split"]
        seen = {crops.entries[n].patient for side in ("train", "validation") for n in split[side]["samples"]}
        for row in json.loads((folder / "predictions.json").read_text())["held-out made-up, mass only"]:
            assert row["patient"] not in seen and row["identity"] not in found
            found[row["identity"]] = row["probability"]
    return found


def pairwise_auc(scores: dict[str, float], crops: Crops) -> float:
    """By counting pairs."""
    sick = [scores[entry.identity] for entry in crops.entries if entry.malignant]
    well = [scores[entry.identity] for entry in crops.entries if not entry.malignant]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in sick for b in well]))


def test_every_lesion_is_scored_once_by_a_network_that_never_saw_its_patient(crops: Crops, done: Path) -> None:
    result = json.loads((done / "crossvalidation.json").read_text())
    assert result["lesions"] == 48 and result["patients"] == 24 and result["folds"] == FOLDS
    aucs = []
    for cell, row in zip(CELLS, result["cells"], strict=True):
        scores = scores_of_test_parts(crops, done, cell)
        assert set(scores) == {entry.identity for entry in crops.entries}
        aucs.append(pairwise_auc(scores, crops))
        assert row["sets"][0]["auc"]["value"] == pytest.approx(aucs[-1])
        assert len(row["auc_of_folds"]) == FOLDS
    (difference,) = result["differences"]
    assert difference["auc"]["value"] == pytest.approx(aucs[0] - aucs[1])
    assert difference["auc"]["low"] <= difference["auc"]["value"] <= difference["auc"]["high"]
    assert "too few" in result["remarks"][0]


def test_an_external_set_of_the_same_patients_counts_only_unseen_ones(crops: Crops, done: Path) -> None:
    """Each fold leaves the lesions that it tests, so the mean over folds is the mean of the test figures."""
    result = json.loads((done / "crossvalidation.json").read_text())
    for row in result["cells"]:
        (external,) = row["external"]
        assert external["lesions"] == 48
        assert external["auc"]["value"] == pytest.approx(np.mean(row["auc_of_folds"]))


def test_finished_folds_are_kept_and_the_page_can_be_read(crops: Crops, done: Path) -> None:
    before = json.loads((done / "crossvalidation.json").read_text())
    trained: list[str] = []
    (done / "runs" / "xception-optimised-imagenet-fold1" / "evaluation.json").unlink()
    again = run(crops, done, trained, external=[LesionSet("the same patients", crops, part_of(crops))])
    assert trained == ["xception-optimised-imagenet-fold1"]
    assert json.loads(json.dumps(again)) == before
    text = (done / "report.html").read_text()
    assert all(word in text for word in ("fold 2", "xception_c-optimised-imagenet over", "not a medical device", "ROC"))
    assert [line[0] for line in show(again)] == [
        f"{cell.name}, {name}" for cell in CELLS for name in ("made-up, 3-fold by patient", "the same patients")
    ]


def test_going_on_from_another_cross_validation_needs_all_its_runs(crops: Crops, done: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no .*fold0/final\.npz to start from"):
        run(crops, tmp_path / "out", start=tmp_path)
    assert not (tmp_path / "out").exists()


def test_going_on_is_refused_where_a_fold_tests_other_lesions(crops: Crops, done: Path, tmp_path: Path) -> None:
    def started(folds: int) -> dict[str, Any]:
        return crossvalidate(
            CELLS[:1], RECIPE, "none", crops, tmp_path / str(folds), folds=folds, start=done, build=small_network
        )

    with pytest.raises(RunError, match="tested other lesions than this fold does"):
        started(2)
    assert not (tmp_path / "2").exists()
    assert started(FOLDS)["cells"][0]["recipe"]["init"].endswith("fold2/final.npz")


def test_figures_of_another_recipe_or_other_crops_are_not_taken_over(crops: Crops, done: Path, tmp_path: Path) -> None:
    external = [LesionSet("the same patients", crops, part_of(crops))]
    with pytest.raises(RunError, match="another recipe, data or split"):
        crossvalidate(CELLS, replace(RECIPE, epochs=3), "none", crops, done, folds=FOLDS, external=external)
    other = small_crops(tmp_path / "crops", 40)
    with pytest.raises(RunError, match="another recipe, data or split"):
        crossvalidate(CELLS, RECIPE, "none", other, done, folds=FOLDS, external=external)


def test_a_run_goes_on_with_all_weights_of_a_finished_one_at_another_size(tmp_path: Path) -> None:
    first = build_network("mobilenet_v2", "plain", input_size=64)
    weights = {f"v{number}": np.asarray(variable) for number, variable in enumerate(first.weights)}
    np.savez(tmp_path / "final.npz", about=np.array("{}"), **weights)
    recipe = Recipe(network="mobilenet_v2", head="plain", init=str(tmp_path / "final.npz"))
    second = build_for(recipe, 96)
    assert second.input_shape[1] == 96
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RunError, match="holds no weights of a run"):
        build_for(Recipe(network="mobilenet_v2", head="plain", init=str(tmp_path / "torn.npz")), 96)


def test_the_split_of_everybody_has_no_test_and_keeps_patients_apart(crops: Crops) -> None:
    split = split_samples(crops.patients.tolist(), crops.malignant.tolist(), crops.groups, how="all", validation=0.25)
    assert len(split.test) == 0
    train, held = (set(crops.patients[part.samples]) for part in (split.train, split.validation))
    assert not train & held and len(train | held) == 24
    assert len(split.train) + len(split.validation) == 48
    with pytest.raises(DataError, match="would train on the data set's own test group"):
        split_samples(["a", "b"], [True, False], ["train", "test"], how="all")


def test_a_network_of_everybody_is_exported_with_what_its_recipe_was_measured_at(
    crops: Crops, done: Path, tmp_path: Path
) -> None:
    split = small_split(crops, "all")
    fit(RECIPE, crops, split, tmp_path / "run", build=small_network)
    with pytest.raises(DataError, match="trained or validated on every patient"):
        everybody = [LesionSet("x", crops, part_of(crops))]
        evaluate_run(tmp_path / "run", crops, tmp_path / "e", external=everybody, build=small_network)
    result = evaluate_run(tmp_path / "run", crops, tmp_path / "e", build=small_network)
    assert [one["name"] for one in result["sets"]] == [
        "validation part, on which temperature and threshold were chosen"
    ]
    words: dict[str, Any] = {"name": "n", "version": "1", "data": "d", "licence": "l", "build": small_network}
    with pytest.raises(RunError, match="holds no cross-validation"):
        export_run(tmp_path / "run", tmp_path / "e", tmp_path / "b", **words, crossvalidation=tmp_path)
    made = export_run(tmp_path / "run", tmp_path / "e", tmp_path / "b", **words, crossvalidation=done)
    expected = json.loads((done / "crossvalidation.json").read_text())["cells"][0]["sets"][0]
    first = made.manifest.metrics[0]
    assert (first.name, first.value, first.low, first.count) == (
        "AUC", expected["auc"]["value"], expected["auc"]["low"], 48,
    )  # fmt: skip
    assert "not this one" in first.data and "validation part" in made.manifest.metrics[3].data
    assert "0 test lesions" in made.manifest.training["split"]
    assert made.manifest.training["start"] == "random weights"
    second = replace(RECIPE, init=str(tmp_path / "run" / "final.npz"))
    fit(second, crops, split, tmp_path / "second", build=small_network)
    evaluate_run(tmp_path / "second", crops, tmp_path / "e2", build=small_network)
    gone_on = export_run(tmp_path / "second", tmp_path / "e2", tmp_path / "b2", **words)
    assert gone_on.manifest.training["start"] == "random weights, then 2 epochs with ROIs of 32 x 32 pixels"
