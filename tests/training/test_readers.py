from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from training import cbis
from training.cbis import read_cbis, set_beside_paper
from training.csv_dataset import read_table
from training.csv_reader import read_rows
from training.errors import DataError
from training.mias import read_mias
from training.samples import DESCRIPTORS, counts
from training.squeezed import read_squeezed
from training.synthetic import write_synthetic


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def picture(path: Path, size: tuple[int, int] = (299, 299)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cbis")
    write_synthetic(folder, patients=12)
    return folder


def test_csv_names_its_missing_column_and_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Image View,label\n1,2\n")
    assert read_rows(tmp_path / "a.csv", ("image_view",)) == [{"image_view": "1", "label": "2"}]
    with pytest.raises(DataError, match=r"no column 'patient'; it has image_view, label"):
        read_rows(tmp_path / "a.csv", ("label", "patient"))


def test_ddsm299_squeezes_boxes_like_the_films_and_undoes_the_aspect_by_spacing(tmp_path: Path) -> None:
    row = {
        "film": "C_1.LEFT_CC.png",
        "patient": "P_1",
        "type": "mass",
        "pathology": "MALIGNANT",
        "official_split": "train",
        "x": 299,
        "y": 598,
        "width": 299,
        "height": 598,
        "film_rows": 5980,
        "film_columns": 2990,
    }
    picture(tmp_path / "films" / row["film"])
    others = [{**row, "pathology": "UNKNOWN"}, {**row, "film": "gone.png"}, {**row, "type": "calc"}]
    write_csv(tmp_path / "rois.csv", [row, *others])
    reading = read_squeezed(tmp_path)
    first, second = reading.samples
    # 2990 columns on 299: a tenth; 5980 rows on 299: a twentieth.
    np.testing.assert_allclose(first.outline[[0, 2]], [(29.9, 29.9), (59.8, 59.8)])
    assert first.spacing == pytest.approx((1.0, 0.5))  # 0.05 mm a film pixel
    assert first.malignant and first.spacing_assumed and second.kind == "calcification"
    assert [skipped.where for skipped in reading.skipped] == [
        "rois.csv row 3 (C_1.LEFT_CC.png)",
        "rois.csv row 4 (gone.png)",
    ]
    assert "UNKNOWN" in reading.skipped[0].reason


def test_squeezed_films_of_any_size_keep_their_own_split_and_what_the_tables_say(tmp_path: Path) -> None:
    row = {"film": "00001_LEFT_CC.jpg", "official_split": "test", "patient": "P_00001", "laterality": "LEFT", "view": "CC",
           "pathology": "BENIGN", "x": 400, "y": 300, "width": 200, "height": 100,
           "film_rows": 4000, "film_columns": 2000}  # fmt: skip
    picture(tmp_path / "test" / row["film"], (800, 800))
    picture(tmp_path / "train" / "00002_LEFT_CC.jpg", (400, 400))
    other = {**row, "film": "00002_LEFT_CC.jpg", "official_split": "train", "patient": "P_00002"}
    write_csv(tmp_path / "rois.csv", [row, other, {**other, "x": 900}])
    described = {"patient_id": "P_00001", "left or right breast": "LEFT", "image view": "CC", "breast_density": "3",
                 "abnormality type": "mass", "mass shape": "OVAL", "mass margins": "SPICULATED", "assessment": "2",
                 "pathology": "BENIGN_WITHOUT_CALLBACK", "subtlety": "5"}  # fmt: skip
    twice = {**described, "patient_id": "P_00002", "pathology": "BENIGN"}
    write_csv(tmp_path / "mass_case_description_test_set.csv", [described])
    write_csv(tmp_path / "mass_case_description_train_set.csv", [twice, {**twice, "mass shape": "ROUND"}])
    first, second, third = read_squeezed(tmp_path).samples
    # 2000 columns on 800: 0.4; 4000 rows on 800: 0.2.
    np.testing.assert_allclose(first.outline[[0, 2]], [(160, 60), (240, 80)])
    assert first.spacing == pytest.approx((0.25, 0.125)) and second.spacing == pytest.approx((0.5, 0.25))
    assert (first.group, second.group, first.kind, first.dataset) == ("test", "train", "mass", tmp_path.name)
    assert (second.identity, third.identity) == ("00002_LEFT_CC#1", "00002_LEFT_CC#2")
    assert first.descriptors == {
        "pathology": "BENIGN_WITHOUT_CALLBACK", "side": "LEFT", "view": "CC", "density": "3", "assessment": "2",
        "subtlety": "5", "shape": "OVAL", "margin": "SPICULATED",
    }  # fmt: skip
    # Two lesions on one film: only what holds for both is known of each.
    assert "shape" not in second.descriptors and third.descriptors["margin"] == "SPICULATED"


def test_mias_gives_circles_and_pairs_as_patients(tmp_path: Path) -> None:
    row = {
        "image": "mdb001.png",
        "pair": 1,
        "lesion_class": "CIRC",
        "severity": "BENIGN",
        "x": 50,
        "y": 60,
        "radius": 10,
    }
    picture(tmp_path / "mdb001.png", (100, 100))
    write_csv(tmp_path / "lesions.csv", [row, {**row, "lesion_class": "ARCH"}, {**row, "severity": "?"}])
    reading = read_mias(tmp_path)
    np.testing.assert_allclose(np.hypot(*(reading.samples[0].outline - (50, 60)).T), 10)
    assert [(s.kind, s.patient, s.identity) for s in reading.samples] == [
        ("mass", "pair 1", "mdb001#1"),
        ("other", "pair 1", "mdb001#2"),
    ]
    assert len(reading.skipped) == 1


def test_cbis_finds_every_lesion_of_the_synthetic_tree_but_the_missing_mask(tree: Path) -> None:
    reading = read_cbis(tree, tree)
    # 12 patients, two views, one more lesion of P_00002, one more calcification of P_00001, one mask missing.
    assert len(reading.samples) == 12 * 2 + 1 + 1 - 1
    (skipped,) = reading.skipped
    assert skipped.where.endswith("Calc-Training_P_00003_LEFT_MLO_1") and "no mask" in skipped.reason
    assert sum(counts(reading.samples).values()) == len(reading.samples)
    assert [count for _, count, _ in set_beside_paper(reading.samples)] == [
        sum(not s.malignant and s.group == "train" for s in reading.samples),
        sum(s.malignant and s.group == "train" for s in reading.samples),
        sum(not s.malignant and s.group == "test" for s in reading.samples),
        sum(s.malignant and s.group == "test" for s in reading.samples),
    ]
    assert [row[2] for row in set_beside_paper(reading.samples)] == [1187, 1138, 409, 261]


def test_cbis_outlines_lie_on_the_bright_lesion_whatever_the_order_of_the_files(tree: Path) -> None:
    for sample in read_cbis(tree, tree).samples:
        if sample.kind == "mass":
            film = pydicom.dcmread(sample.image).pixel_array.astype(float)
            left, top, right, bottom = (int(v) for v in (*sample.outline.min(0), *sample.outline.max(0)))
            inside = film[top:bottom, left:right].mean()
            around = film[max(top - 20, 0) : bottom + 20, max(left - 20, 0) : right + 20].mean()
            assert inside > around
            assert 25 < right - left < 75


def test_cbis_scales_a_mask_of_half_the_size(tree: Path) -> None:
    names = {sample.identity: sample for sample in read_cbis(tree, tree).samples}
    halved = names["Mass-Training_P_00002_LEFT_CC_1"]
    folder = next(path for path in tree.iterdir() if path.name == halved.identity)
    masks = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    mask = next(m.pixel_array for m in masks if m.SeriesDescription == "ROI mask images")
    assert mask.shape == (180, 130)
    rows, columns = np.nonzero(mask)
    expected = [(2 * columns.min(), 2 * rows.min()), (2 * columns.max() + 2, 2 * rows.max() + 2)]
    np.testing.assert_allclose(halved.outline[[0, 2]], expected)


def test_cbis_reads_the_jpeg_edition_as_it_reads_tcias_tree(tree: Path, tmp_path: Path) -> None:
    for path in tree.rglob("*.dcm"):
        header = pydicom.dcmread(path)
        pixels = header.pixel_array / (65535 if header.BitsStored == 16 else 255)
        file = tmp_path / "jpeg" / path.parent.name / f"{path.stem}.jpg"  # the folder is the series
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(file, quality=90)
    expected = {sample.identity: sample for sample in read_cbis(tree, tree).samples}
    found = read_cbis(tmp_path, tree)
    assert {sample.identity for sample in found.samples} == set(expected)
    for sample in found.samples:
        assert sample.image.suffix == ".jpg"
        np.testing.assert_allclose(sample.outline, expected[sample.identity].outline, atol=2)


def test_cbis_keeps_what_it_found_in_the_masks(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "outlines.jsonl"
    first = read_cbis(tree, tree, outlines=kept)
    kept.write_text(kept.read_text()[:-20])  # a kill cut the last line short
    decoded = []
    honest = cbis._mask
    monkeypatch.setattr(cbis, "_mask", lambda files: decoded.append(files) or honest(files))
    second = read_cbis(tree, tree, outlines=kept)
    # The one that was cut short, and the one that has no mask.
    assert len(decoded) == 2 and second.skipped == first.skipped
    for one, again in zip(first.samples, second.samples, strict=True):
        np.testing.assert_array_equal(one.outline, again.outline)
    decoded.clear()
    image = first.samples[0].image
    os.utime(image, (1, 1))
    read_cbis(tree, tree, outlines=kept)
    assert len(decoded) > 1


def test_cbis_keeps_benign_without_callback_and_the_descriptors_apart(tree: Path) -> None:
    samples = read_cbis(tree, tree).samples
    labels = {sample.descriptors["pathology"] for sample in samples}
    assert labels == {"BENIGN", "BENIGN_WITHOUT_CALLBACK", "MALIGNANT"}
    assert all(sample.malignant == (sample.descriptors["pathology"] == "MALIGNANT") for sample in samples)
    mass = next(sample for sample in samples if sample.kind == "mass" and sample.malignant)
    assert mass.descriptors["margin"] == "SPICULATED" and mass.descriptors["density"] == "3"
    assert set().union(*(sample.descriptors for sample in samples)) <= set(DESCRIPTORS)


def test_cbis_skips_what_cannot_be_used_and_says_why(tree: Path, tmp_path: Path) -> None:
    (table,) = tree.glob("mass_case_description_train_set.csv")
    rows = read_rows(table, ())
    broken = [
        {**rows[0], "pathology": "UNPROVEN"},
        {**rows[0], "image_file_path": "Mass-Training_P_09999_LEFT_CC/1/2/000000.dcm"},
        {**rows[0], "roi_mask_file_path": rows[0]["image_file_path"]},  # a mammogram where a mask should be
        rows[0],
    ]
    write_csv(tmp_path / table.name, broken)
    reading = read_cbis(tree, tmp_path)
    assert len(reading.samples) == 1
    assert ["UNPROVEN" in reading.skipped[0].reason, "missing" in reading.skipped[1].reason] == [True, True]
    assert "two values" in reading.skipped[2].reason
    with pytest.raises(DataError, match="no folder like"):
        read_cbis(tmp_path, tmp_path)
    with pytest.raises(DataError, match="no file like"):
        read_cbis(tree, tree / rows[0]["image_file_path"].split("/")[0])


def test_table_takes_boxes_and_outlines_and_names_each_bad_row(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"image": "a.png", "label": "Malignant", "patient": "1", "x": 10, "y": 20, "width": 30, "height": 40,
           "outline": "", "kind": "mass", "group": "", "mm_per_pixel": "0.07"}  # fmt: skip
    bad = [{"image": "b.png"}, {"label": "cancer"}, {"patient": ""}, {"width": -1}, {"x": "nan"},
           {"outline": "1,2 3,4"},
           {"kind": "cyst"}, {"group": "both"}, {"mm_per_pixel": "0"}]  # fmt: skip
    write_csv(tmp_path / "own.csv", [row, {**row, "outline": "1,2 3,4 5,0.5"}, *({**row, **change} for change in bad)])
    reading = read_table(tmp_path / "own.csv")
    box, polygon = reading.samples
    np.testing.assert_array_equal(box.outline, [(10, 20), (40, 20), (40, 60), (10, 60)])
    np.testing.assert_array_equal(polygon.outline, [(1, 2), (3, 4), (5, 0.5)])
    assert box.spacing == (0.07, 0.07) and box.malignant and box.group is None
    assert [skipped.where for skipped in reading.skipped] == [f"own.csv row {line}" for line in range(4, 13)]


def test_table_refuses_a_patient_on_both_sides(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"image": "a.png", "label": "0", "patient": "1", "x": 1, "y": 2, "width": 3, "height": 4, "group": "train"}
    write_csv(tmp_path / "own.csv", [row, {**row, "group": "test"}])
    with pytest.raises(DataError, match="1 patients stand in both groups"):
        read_table(tmp_path / "own.csv")


def test_table_without_box_or_outline_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "own.csv", [{"image": "a.png", "label": "0", "patient": "1", "x": 1}])
    with pytest.raises(DataError, match="neither a column 'outline'"):
        read_table(tmp_path / "own.csv")
