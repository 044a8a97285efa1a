"""What shows a report as text: Orthanc's own pages, of an Orthanc that holds it, and `dsr2html`'s page, in
Chromium.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from daemon.reports.statements import RESEARCH_USE
from tests.support import report_objects as b
from tests.support.browser.chromium import Watched
from tests.support.peers.archives import Orthanc, running_orthanc
from tests.support.peers.programs import dsr2html

pytestmark = pytest.mark.peers

DESCRIPTION = "RESEARCH ONLY: probability of cancer of marked lesions"


@pytest.fixture(scope="module")
def report() -> bytes:
    """Two lesions on one image, as the file that would be stored."""
    image = b.mammogram()
    other = [(column + 600, row + 900) for column, row in b.SQUARE]
    lesions = [b.lesion(image, tracking_id="Finding A"), b.lesion(image, points=other, tracking_id="Finding B")]
    results = [b.result(lesion, risk) for lesion, risk in zip(lesions, (0.8712, 0.0423), strict=True)]
    return b.saved(b.report(results, image))


@pytest.fixture
def archive(tmp_path: Path, report: bytes) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.upload(report)
        yield orthanc


def test_orthanc_explorer_lists_the_report_and_shows_its_attributes(browser: Browser, archive: Orthanc) -> None:
    (study,) = json.loads(archive.rest("/studies"))
    (uid,) = archive.instances()
    watched = Watched(browser)
    page = watched.page
    page.goto(f"{archive.url}/app/explorer.html#study?uuid={study}")
    series = page.locator("#study #list-series li", has_text=DESCRIPTION)
    assert "Modality: SR" in series.inner_text()
    series.locator("a").click()
    page.locator("#series #list-instances li", has_text=uid).locator("a").click()
    attributes = page.locator("#instance #dicom-tree")
    for line in (
        "0008,0060 (Modality): SR",
        f"0008,103e (SeriesDescription): {DESCRIPTION}",
        "0018,9004 (ContentQualification): RESEARCH",
    ):
        attributes.get_by_text(line).wait_for()  # until it is visible
    watched.keep("orthanc-explorer")
    assert watched.errors == [] and watched.strangers() == []
    page.close()


def test_dsr2html_s_page_shows_results_tracking_and_research_marking(
    browser: Browser, report: bytes, tmp_path: Path
) -> None:
    (tmp_path / "report.dcm").write_bytes(report)
    (tmp_path / "report.html").write_text(dsr2html(tmp_path / "report.dcm"))
    watched = Watched(browser, 1280, 1500)
    watched.page.goto((tmp_path / "report.html").as_uri())
    watched.keep("dsr2html")
    text = watched.page.inner_text("body")  # as it is laid out: nothing hidden is in it
    assert DESCRIPTION in text and RESEARCH_USE in text
    first, second = text.index("Finding A"), text.index("Finding B")
    assert first < text.index("87.12") < second < text.index("4.23")
    assert watched.errors == [] and watched.strangers() == []
    watched.page.close()
