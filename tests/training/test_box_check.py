from __future__ import annotations

from pathlib import Path

import pytest

from training.box_check import check_boxes, overlap
from training.samples import Sample, rectangle


def test_overlap_is_the_common_area_over_the_joint_one() -> None:
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1


def test_each_lesion_is_held_against_the_boxes_of_its_film_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(
        "id,minx,miny,maxx,maxy,lesion_type\n"
        "P_00001_LEFT_CC,100,100,200,200,mass\n"
        "P_00001_LEFT_CC,500,100,600,200,mass\n"
        "P_00001_LEFT_CC,300,300,400,400,calc\n"
    )

    def sample(identity: str, left: float, kind: str = "mass", view: str = "CC") -> Sample:
        about = {"side": "LEFT", "view": view}
        outline = rectangle(left, 100, left + 100, 200)
        return Sample(identity, "cbis-ddsm", tmp_path, outline, True, "P_00001", "train", kind, descriptors=about)

    found = check_boxes(
        [
            sample("same", 505),
            sample("off", 150),
            sample("kind", 500, "calcification"),
            sample("view", 500, view="MLO"),
        ],
        path,
    )
    assert [check.identity for check in found if check.is_same] == ["same"]
    assert found[0].overlap == pytest.approx(95 / 105)
    assert [check.overlap for check in found[2:]] == [0, 0]
