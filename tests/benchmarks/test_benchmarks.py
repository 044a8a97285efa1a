"""The benchmarks run, judge by their bars and write what they found; how fast anything is is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.case import Bar, Case, Row, Run, Verdict, interleaved, judge
from benchmarks.cases import CASES
from benchmarks.report import lines, plot
from tests.support.repository import ROOT

LIMIT_S = 240


def rows(**figures: list[float]) -> list[Row]:
    return [
        Row("rate", who, pair, value, "images/s")
        for who, values in figures.items()
        for pair, value in enumerate(values, 1)
    ]


def test_a_bar_is_held_against_the_median_of_the_pairs_ratios() -> None:
    # 40/10, 15/10, 50/20: the median is 2.5; of the medians themselves it would be 40/10 = 4.
    measured = rows(ours=[40, 15, 50], peer=[10, 10, 20])
    assert judge(Bar("rate", "ours", 2.5, "peer"), measured) == Verdict(
        Bar("rate", "ours", 2.5, "peer"), 2.5, 1.5, 4.0, True
    )
    assert judge(Bar("rate", "ours", 2.51, "peer"), measured).met is False
    assert judge(Bar("rate", "ours", 2.4, "peer", at_most=True), measured).met is False
    assert judge(Bar("rate", "ours", 40, at_most=True), measured).met is True
    assert judge(Bar("rate", "ours", 41), measured).met is False
    assert judge(Bar("other", "ours", 1), measured).met is None


def test_the_contenders_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    def contender(name: str) -> object:
        return lambda pair: order.append(f"{name}{pair}") or 1.0

    run = Run(3, tmp_path, True, lambda text: None)
    list(interleaved(run, "rate", "images/s", {"a": contender("a"), "b": contender("b")}))  # type: ignore[dict-item]
    assert order == ["a1", "b1", "b2", "a2", "a3", "b3"]


def test_what_was_not_met_or_not_measured_is_said_and_the_plot_is_xml() -> None:
    case = Case("some", "a & b", (Bar("rate", "ours", 5, "peer"), Bar("memory", "ours", 1)), lambda run: iter(()))
    measured = rows(ours=[40, 15], peer=[10, 10])
    said = "\n".join(lines(case, measured))
    assert "NOT MET: rate: ours >= 5 x peer: 2.75 (1.5 to 4)" in said
    assert "not measured: memory" in said
    bars = ET.fromstring(plot(case, measured)).iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(bars)) == 1 + 2  # the ground, and one for each contender


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", ["growth", pytest.param("small-objects", marks=pytest.mark.peers)])
def test_a_tiny_run_writes_figures_and_a_plot(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--pairs", "2", "--out", str(tmp_path / "out")]
    completed = subprocess.run(
        [*command, "--scratch", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    if "apt-get install" in completed.stderr:
        pytest.skip("a peer program is missing")
    assert completed.returncode == 0, completed.stderr[-3000:]
    written = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert written["tiny"] is True
    assert {row["pair"] for row in written["rows"]} == {1, 2}
    assert all(row["value"] > 0 for row in written["rows"])
    ET.parse(tmp_path / "out" / f"{name}.svg")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"], "scratch files are removed"
