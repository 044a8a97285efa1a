"""The pages that the demo and `mammod-train` write, in Chromium: nothing missing, no error, nothing asked
of another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from daemon.demo.cases import read_cases
from daemon.demo.lesion_objects import tracking_uid
from daemon.demo.page import write_page
from daemon.demo.results import Row, read_report
from daemon.demo.sending import prepare
from tests.support.browser.chromium import Watched
from tests.support.crops import SIZE, small_crops, small_network, small_split
from tests.support.demo_cases import store_report
from training import html_report
from training.crossvalidate import crossvalidate
from training.evaluate import evaluate_run
from training.fit import fit
from training.paper_grid import WEIGHTS, Cell, grid, reproduce
from training.recipe import Recipe
from training.roi_cache import Crops

pytestmark = pytest.mark.peers

TWO_LESIONS = 2  # 1-132, whose first lesion reaches to the image's edge
STROKE = 6  # pixels of the screen that the box around an outline has for its line
RECIPE = Recipe(init="none", epochs=2, batch=8, learning_rate=1e-4)  # too little to be right about every crop


def opened(browser: Browser, path: Path, name: str) -> Watched:
    watched = Watched(browser)
    watched.page.goto(path.as_uri())
    watched.keep(name, whole=True)
    assert watched.errors == []
    assert {url.split(":", 1)[0] for url in watched.requests} <= {"file", "data"}
    return watched


def boxes(watched: Watched, selector: str) -> list[dict[str, float]]:
    """Where the elements are on the page; each must be there and have a size."""
    found = [element.bounding_box() for element in watched.page.locator(selector).all()]
    assert found and all(box and box["width"] > 0 and box["height"] > 0 for box in found), selector
    return [dict(box) for box in found if box]


def test_the_demo_s_page_shows_each_lesion_in_its_picture(browser: Browser, tmp_path: Path) -> None:
    [case] = prepare([read_cases()[TWO_LESIONS]], tmp_path / "sent")
    _, stored = store_report(case, [0.1, 0.9], False, tmp_path / "reports")
    reported = {lesion.tracking_uid: lesion for lesion in read_report(stored.path)}
    rows = [Row(case, lesion, reported[tracking_uid(lesion)], 1.5) for lesion in case.case.lesions]
    write_page(tmp_path / "index.html", rows, ["Research use only"])
    watched = opened(browser, tmp_path / "index.html", "demo-page")
    assert "10.00 %" in watched.page.inner_text("body") and "90.00 %" in watched.page.inner_text("body")
    close_ups, outlines = boxes(watched, "svg.close"), boxes(watched, "svg.close .outline")
    assert len(boxes(watched, "svg image")) == 4 and len(close_ups) == len(outlines) == 2
    for picture, outline in zip(close_ups, outlines, strict=True):
        for edge, length in (("x", "width"), ("y", "height")):
            assert picture[edge] - STROKE <= outline[edge]
            assert outline[edge] + outline[length] <= picture[edge] + picture[length] + STROKE
    watched.page.close()


def test_a_page_s_crops_and_captions_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 299, dtype=np.float32), (299, 1))
    html_report.write_page(
        tmp_path / "report.html", "Evaluation", [html_report.roi_sheet([(ramp, "a crop & its <caption>")])]
    )
    watched = opened(browser, tmp_path / "report.html", "training-page")
    assert "a crop & its <caption>" in watched.page.inner_text("body")
    assert crops_shown(watched) == [299]
    watched.page.close()


@dataclass(frozen=True)
class Expected:
    """What a page of `mammod-train` must show, counted from the numbers that it lies beside."""

    report: Path
    tables: int
    charts: int
    lines: int
    crops: int
    words: Sequence[str]
    of_training: int = 0


def evaluated(crops: Crops, out: Path) -> Expected:
    fit(RECIPE, crops, small_split(crops), out / "run", build=small_network)
    result = evaluate_run(out / "run", crops, out / "e", build=small_network)
    predictions = json.loads((out / "e" / "predictions.json").read_text())
    wrong = [
        row
        for rows in predictions.values()
        for row in rows
        if (row["probability"] >= result["threshold"]) != truth_of(crops, row["identity"])
    ]
    assert 0 < len(wrong) <= 24
    assert len(wrong) == sum(one["confusion"][0][1] + one["confusion"][1][0] for one in result["sets"])
    sets = result["sets"]
    words = [one["name"] for one in sets] + [row["identity"] for row in wrong] + [f"{sets[0]['auc']['value']:.3f}"]
    # For each set ROC, reliability and a confusion matrix; once the accuracy and the loss by epoch.
    return Expected(out / "e", 3 + len(sets), 2 * len(sets) + 2, 2 * len(sets) + 2, len(wrong), words, of_training=2)


def truth_of(crops: Crops, identity: str) -> bool:
    (found,) = (entry.malignant for entry in crops.entries if entry.identity == identity)
    return found


def reproduced(crops: Crops, out: Path) -> Expected:
    cells = grid(("xception_c",))
    weights = out / "weights"
    weights.mkdir(parents=True)
    for cell in cells:
        (weights / WEIGHTS[cell.network]).touch()  # the stand-in network does not open them
    reproduce(cells, RECIPE, weights, crops, small_split(crops), out, build=small_network)
    # Tables 1 and 2 of the paper, its curves from two starts, its confusion matrix.
    return Expected(
        out, 4, 2, 4, 0, ["Table 1", "97.46", "99.12", "Fig. 8", "imagenet", "random", "Fig. 9"], of_training=2
    )


def crossvalidated(crops: Crops, out: Path) -> Expected:
    cells = [Cell("xception_c", "optimised"), Cell("xception", "optimised")]
    result = crossvalidate(cells, RECIPE, "none", crops, out, folds=2, build=small_network)
    aucs = [f"{value:.3f}" for row in result["cells"] for value in row["auc_of_folds"]]
    return Expected(out, 4, 1, 2, 0, ["fold 1", *(cell.name for cell in cells), *aucs])


@pytest.mark.parametrize("made", [evaluated, reproduced, crossvalidated])
def test_the_pages_of_mammod_train_show_their_tables_charts_and_crops(
    made: Callable[[Crops, Path], Expected], browser: Browser, tmp_path: Path
) -> None:
    expected = made(small_crops(tmp_path / "crops"), tmp_path / "out")
    watched = opened(browser, expected.report / "report.html", f"training-{made.__name__}")
    text = watched.page.inner_text("body")
    assert "not a medical device" in text and "too few" in text and "nan to" not in text
    assert [words for words in expected.words if words not in text] == []
    assert len(boxes(watched, "table")) == expected.tables
    assert len(boxes(watched, "svg")) == expected.charts
    assert len(boxes(watched, "svg path[fill=none]:not([stroke-dasharray])")) == expected.lines
    assert watched.page.evaluate(_TEXT_OUTSIDE_ITS_CHART) == []
    assert watched.page.evaluate(_EPOCHS) == [["0", "1", "2"]] * expected.of_training
    assert crops_shown(watched) == [SIZE] * expected.crops
    watched.page.close()


# What is written below the axis of each chart by epoch: whole numbers.
_EPOCHS = """() => [...document.querySelectorAll('svg')]
    .filter(chart => [...chart.querySelectorAll('text')].some(text => text.textContent == 'epoch'))
    .map(chart => [...chart.querySelectorAll('text[text-anchor=middle]')].map(text => text.textContent)
        .filter(text => text.match(/\\d/)))"""
_TEXT_OUTSIDE_ITS_CHART = """() => [...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
    return !inner.width || inner.left < outer.left || inner.right > outer.right
        || inner.top < outer.top || inner.bottom > outer.bottom;
}).map(text => text.textContent)"""


def crops_shown(watched: Watched) -> list[int]:
    """The width in pixels of every picture that was decoded; each must have a size on the page."""
    sizes = watched.page.evaluate(
        "() => [...document.images].map(image => image.complete && image.width && image.naturalWidth)"
    )
    assert all(sizes), sizes
    return list(sizes)
