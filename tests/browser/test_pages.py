"""The pages that the demo and `mammod-train` write, in Chromium: nothing missing, no error, nothing asked of another machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from daemon.demo.cases import read_cases
from daemon.demo.lesion_objects import tracking_uid
from daemon.demo.page import write_page
from daemon.demo.results import Row, read_report
from daemon.demo.sending import prepare
from tests.browser.chromium import Watched
from tests.daemon.demo.builders import store_report
from training import page
from training.evaluate import curves

pytestmark = pytest.mark.peers

TWO_LESIONS = 2  # 1-132, whose first lesion reaches to the image's edge
STROKE = 6  # pixels of the screen that the box around an outline has for its line


def opened(browser: Browser, path: Path, name: str) -> Watched:
    watched = Watched(browser)
    watched.page.goto(path.as_uri())
    watched.keep(name)
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


def test_a_page_of_mammod_train_shows_its_tables_charts_and_crops(browser: Browser, tmp_path: Path) -> None:
    log = [
        {"epoch": epoch, "validation_accuracy": 0.5 + epoch / 20, "validation_loss": 1 / epoch} for epoch in (1, 2, 3)
    ]
    ramp = np.tile(np.linspace(0, 1, 299, dtype=np.float32), (299, 1))
    parts = [
        page.heading("Figures"),
        page.table(("set", "AUC"), [("test", 0.75)]),
        page.chart("ROC", "1 - specificity", "sensitivity", [page.Line("AUC 0.75", [(0, 0), (0.2, 0.7), (1, 1)])]),
        page.confusion_table("Confusion matrix", [[5, 1], [2, 4]]),
        page.roi_sheet([(ramp, "a crop & its <caption>")]),
        curves({"a run": log}),
    ]
    page.write_page(tmp_path / "report.html", "Evaluation", parts)
    watched = opened(browser, tmp_path / "report.html", "training-page")
    assert "not a medical device" in watched.page.inner_text("body")
    assert "a crop & its <caption>" in watched.page.inner_text("body")
    assert len(boxes(watched, "svg")) == 3 and len(boxes(watched, "table")) == 2
    sizes = watched.page.evaluate("() => [...document.images].map(image => [image.complete, image.naturalWidth])")
    assert sizes == [[True, 299]]
    watched.page.close()
