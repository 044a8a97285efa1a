"""Run the commands from a synthetic CBIS-DDSM tree to a bundle, and classify lesions through both roads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from model.bundle import load_bundle
from model.crop import CropPolicy
from model.normalise import NormalisationPolicy
from model.roi_extraction import Cut, cut_rois
from tests.support.crops import small_crops, small_network, small_split
from training.batches import part_of, predict
from training.cbis import read_cbis
from training.cli import app, main
from training.errors import DataError, RunError
from training.evaluate import evaluate_run
from training.export import export_run
from training.fit import fit
from training.measured import LesionSet
from training.paper_grid import Cell, grid, reproduce
from training.prepare import COARSE_FILMS, open_frame, prepare
from training.recipe import Recipe
from training.roi_cache import open_cache
from training.samples import Reading, Sample, rectangle
from training.synthetic import write_synthetic

SIZE = 72
RECIPE = Recipe(init="none", epochs=2, batch=8, learning_rate=0.05)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cbis")
    write_synthetic(folder)
    return folder


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_the_commands_from_tree_to_bundle(tree: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"crop": {"kind": "pixels", "side_px": SIZE, "size": SIZE}}))
    crops, run, report = tmp_path / "crops", tmp_path / "run", tmp_path / "report"
    shown = command("prepare", "cbis", tree, crops, "--policy", policy)
    assert "no mask" in shown and "1187" in shown  # the skipped row's reason, and the paper's count
    network = ("--network", "mobilenet_v2", "--head", "plain", "--init", "none")
    command("fit", crops, run, *network, "--epochs", 1, "--learning-rate", "1e-3")
    command("evaluate", run, crops, report, "--external", f"the same again={crops}")
    page = (report / "report.html").read_text()
    assert "Reliability" in page and "too few" in page and "not a medical device" in page and "http" not in page
    result = json.loads((report / "evaluation.json").read_text())
    cache = open_cache(crops)
    assert result["sets"][0]["lesions"] == sum(entry.group == "test" for entry in cache.entries)
    assert [one["name"] for one in result["sets"]][-1] == "the same again"
    names = ("--name", "try", "--version", "1", "--data", "synthetic phantoms", "--limit", "phantoms only")
    card = command("export", run, report, tmp_path / "bundle", *names)
    assert "phantoms only" in card and "synthetic phantoms" in card
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.trained and bundle.manifest.metrics[0].count == result["sets"][0]["lesions"]
    assert bundle.manifest.crop.side_px == SIZE
    assert bundle.manifest.threshold == result["threshold"]
    # Half precision on disk keeps a lesion's score; "the same again" has no patients the run has seen.
    scores = json.loads((report / "predictions.json").read_text())["the same again"]
    numbers = [n for n, entry in enumerate(cache.entries) if entry.identity in {row["identity"] for row in scores}]
    tested = {entry.patient for entry in cache.entries if entry.group == "test"}
    assert {cache.entries[n].patient for n in numbers} == tested
    found = predict(bundle.network(), cache, part_of(cache, numbers))
    from model.calibration import calibrate

    calibrated = calibrate(found, bundle.manifest.temperature, bundle.manifest.bias)
    np.testing.assert_allclose(calibrated, [row["probability"] for row in scores], atol=0.02)


def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (("prepare", "ddsm", tmp_path, tmp_path / "c"), "there is no source 'ddsm'"),
        (("prepare", "mias", tmp_path, tmp_path / "c", "--policy", "x"), "policy 'x' is neither"),
        (("prepare", "mias", tmp_path, tmp_path), "exists already"),
        (("fit", tmp_path, tmp_path / "run"), "no whole crops cache"),
        (("evaluate", tmp_path, tmp_path, tmp_path, "--external", "x"), "NAME=CROPS was expected"),
    ):
        monkeypatch.setattr("sys.argv", ["mammod-train", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capsys.readouterr().err
        assert stop.value.code == 1 and said in error and "Traceback" not in error


def test_the_grid_runs_resumes_and_sets_the_papers_figures_beside(tmp_path: Path) -> None:
    crops = small_crops(tmp_path / "crops")
    split, cells = small_split(crops), grid(("xception", "xception_c"))
    assert [cell.name for cell in cells][-1] == "xception_c-optimised-random" and len(cells) == 5
    out, trained = tmp_path / "grid", []

    def report(cell: Cell):  # type: ignore[no-untyped-def]
        trained.append(cell.name)
        return lambda what, done, of: None

    def go():  # type: ignore[no-untyped-def]
        return reproduce(cells, RECIPE, "none", crops, split, out, build=small_network, report=report)

    first = go()
    assert trained == [cell.name for cell in cells]
    (out / "runs" / cells[2].name / "evaluation.json").unlink()
    trained.clear()
    assert go() == first and trained == [cells[2].name]
    by_cell = {row["cell"]: row for row in first["rows"]}
    assert by_cell["xception_c-optimised-imagenet"]["paper"] == {"accuracy": 97.46, "auc": 99.12}
    assert by_cell["xception_c-plain-imagenet"]["paper"] == {"accuracy": 93.76}
    assert first["remarks"] and first["split"]["how"] == "patient"
    page = (out / "report.html").read_text()
    assert all(text in page for text in ("Table 1", "Table 2", "Fig. 9", "97.46", "99.12", "too few"))


def test_the_grid_looks_for_all_weights_before_it_trains(tmp_path: Path) -> None:
    crops = small_crops(tmp_path / "crops")
    with pytest.raises(RunError, match=r"no ImageNet weights .*xception.weights.h5 for xception"):
        reproduce(grid(("xception",)), RECIPE, tmp_path, crops, small_split(crops), tmp_path / "g", build=small_network)
    assert not (tmp_path / "g").exists()


def test_an_evaluation_is_of_its_own_run_and_crops(tmp_path: Path) -> None:
    crops, other = small_crops(tmp_path / "crops"), small_crops(tmp_path / "other", 24)
    for seed in (0, 1):
        recipe = Recipe(init="none", epochs=1, batch=8, seed=seed)
        fit(recipe, crops, small_split(crops), tmp_path / f"run{seed}", build=small_network)
    with pytest.raises(DataError, match="is not the cache"):
        evaluate_run(tmp_path / "run0", other, tmp_path / "e", build=small_network)
    evaluate_run(tmp_path / "run0", crops, tmp_path / "e", build=small_network)
    words = {"name": "n", "version": "1", "data": "d", "licence": "l", "build": small_network}
    with pytest.raises(RunError, match="is not of the run"):
        export_run(tmp_path / "run1", tmp_path / "e", tmp_path / "bundle", **words)
    with pytest.raises(RunError, match="run `mammod-train evaluate` first"):
        export_run(tmp_path / "run1", tmp_path / "nothing", tmp_path / "bundle", **words)


def test_an_external_set_must_be_cut_alike(tmp_path: Path, tree: Path) -> None:
    crops = small_crops(tmp_path / "crops")
    fit(Recipe(init="none", epochs=1, batch=8), crops, small_split(crops), tmp_path / "run", build=small_network)
    reading = read_cbis(tree, tree)
    otherwise = prepare(Reading(reading.samples[:2]), tmp_path / "other", CropPolicy(), NormalisationPolicy())
    with pytest.raises(DataError, match="by another policy"):
        external = [LesionSet("x", otherwise, part_of(otherwise))]
        evaluate_run(tmp_path / "run", crops, tmp_path / "e", external=external, build=small_network)


def test_training_and_service_cut_the_same_roi(tree: Path, tmp_path: Path) -> None:
    reading = read_cbis(tree, tree)
    crops = prepare(Reading(reading.samples[:6]), tmp_path / "crops", COARSE_FILMS, NormalisationPolicy(), workers=2)
    for number, sample in enumerate(reading.samples[:6]):
        dataset = pydicom.dcmread(sample.image)
        (roi,) = cut_rois(dataset, [Cut(1, sample.outline)], COARSE_FILMS, NormalisationPolicy())
        np.testing.assert_allclose(crops.roi(number), roi.pixels, atol=1e-5)
        assert crops.entries[number].spacing_assumed and crops.entries[number].box[0] == roi.box.left


def blob(rows: int, columns: int, height_mm: float, width_mm: float) -> np.ndarray:
    """The same 60 x 40 mm scene on any grid: an oblong bright spot at (20, 30) mm, 16-bit."""
    y = (np.arange(rows)[:, None] + 0.5) * height_mm - 30
    x = (np.arange(columns)[None] + 0.5) * width_mm - 20
    return np.rint((0.2 + 0.6 * np.exp(-((y / 6) ** 2) - (x / 4) ** 2)) * 65535).astype(np.uint16)


def test_a_squeezed_film_a_digital_mammogram_and_a_film_without_spacing_give_one_roi(
    tree: Path, tmp_path: Path
) -> None:
    """Use a digital image of 0.07 mm, a film scan of assumed 0.05 mm, and a film squeezed to 0.5 x 0.3 mm."""
    template = pydicom.dcmread(read_cbis(tree, tree).samples[0].image)
    grids = {"digital": (857, 571, 0.07, 0.07), "film": (1200, 800, 0.05, 0.05), "picture": (120, 134, 0.5, 0.3)}
    samples = []
    for name, (rows, columns, height, width) in grids.items():
        pixels = blob(rows, columns, height, width)
        path = tmp_path / f"{name}.png"
        if name == "picture":
            Image.fromarray(pixels).save(path)
        else:
            template.Rows, template.Columns, template.PixelData = rows, columns, pixels.tobytes()
            if name == "digital":
                template.ImagerPixelSpacing = [height, width]
            elif "ImagerPixelSpacing" in template:
                del template.ImagerPixelSpacing
            path = path.with_suffix(".dcm")
            template.save_as(path)
        box = rectangle(14 / width, 20 / height, 26 / width, 40 / height)
        spacing = (height, width) if name == "picture" else None
        samples.append(Sample(name, "d", path, box, True, name, None, "mass", spacing))
    crops = prepare(Reading(tuple(samples)), tmp_path / "crops", COARSE_FILMS, NormalisationPolicy())
    rois = {entry.identity: crops.roi(number) for number, entry in enumerate(crops.entries)}
    assert [entry.spacing_assumed for entry in crops.entries] == [False, True, False]
    np.testing.assert_allclose(rois["digital"], rois["film"], atol=0.01)
    np.testing.assert_allclose(rois["digital"], rois["picture"], atol=0.03)
    assert np.ptp(rois["film"]) > 0.4


def test_preparing_skips_what_cannot_be_opened_and_names_it(tree: Path, tmp_path: Path) -> None:
    good = read_cbis(tree, tree).samples[0]
    torn, colour = tmp_path / "torn.dcm", tmp_path / "colour.png"
    torn.write_bytes(good.image.read_bytes()[:2000])
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(colour)
    (tmp_path / "words.txt").write_text("no image")
    outside = rectangle(9000, 9000, 9010, 9010)
    samples = [good, *(Sample(p.name, "d", p, good.outline, True, "p", None, "mass") for p in
                       (torn, colour, tmp_path / "words.txt", tmp_path / "gone.dcm"))]  # fmt: skip
    samples.append(Sample("outside", "d", good.image, outside, True, "p", None, "mass"))
    crops = prepare(Reading(tuple(samples)), tmp_path / "crops", CropPolicy(), NormalisationPolicy())
    assert [entry.identity for entry in crops.entries] == [good.identity]
    reasons = {row["where"]: row["reason"] for row in crops.skipped}
    assert set(reasons) == {"torn.dcm", "colour.png", "words.txt", "gone.dcm", "outside"}
    assert "mode RGB" in reasons["colour.png"] and "neither a DICOM" in reasons["words.txt"]
    assert "outside" in reasons["outside"]


def test_two_samples_of_one_name_are_refused(tree: Path, tmp_path: Path) -> None:
    one = read_cbis(tree, tree).samples[0]
    with pytest.raises(DataError, match="two samples are called"):
        prepare(Reading((one, one)), tmp_path / "crops", CropPolicy(), NormalisationPolicy())


def test_pictures_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 255], [1, 128]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "b.png")
    np.testing.assert_array_equal(open_frame(tmp_path / "a.png").stored, values)
    np.testing.assert_array_equal(open_frame(tmp_path / "b.png").stored, values.astype(int) * 257)
