"""A mammogram of CBIS-DDSM and every kind of report on it, made by `mammod classify` with the bundle that
comes along: what OHIF and Orthanc's web viewer show of each.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from pydicom import Dataset, dcmread

from daemon.demo.cases import KnownLesion, read_cases
from daemon.demo.lesion_objects import tracking_uid
from daemon.demo.sending import prepare
from daemon.reports.registry import KINDS
from tests.support.browser import ohif
from tests.support.browser.chromium import OUTPUT, Watched
from tests.support.browser.ohif import Viewer
from tests.support.peers.archives import Orthanc, running_orthanc
from tests.support.report_objects import items

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

CASE = "1-133"  # two lesions in one SEG
DESCRIPTION = "RESEARCH ONLY: probability of cancer of marked lesions"
# The part of the picture without the margins, into which viewers write: shares of its height and width.
MIDDLE = (slice(0.12, 0.85), slice(0.05, 0.95))


@dataclass(frozen=True)
class Made:
    """One mammogram's lesions, the reports of every kind on it, and an archive that holds them with the
    image.
    """

    archive: Orthanc
    image_uid: str
    lesions: tuple[KnownLesion, ...]
    reports: dict[str, Dataset]

    @property
    def picture(self) -> np.ndarray:
        return np.asarray(self.reports["sc"].pixel_array)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("every-kind")
    (case,) = (case for case in read_cases() if case.name == CASE)
    prepare([case], folder / "sent")
    command = ["classify", folder / "sent", "--kinds", ",".join(KINDS), "--output", folder / "made"]
    subprocess.run([sys.executable, "-m", "daemon", *command], check=True, timeout=200, capture_output=True)
    files = {kind: next((folder / "made").glob(f"*-{kind}.dcm")) for kind in KINDS}
    with running_orthanc(folder / "orthanc", dicomweb=True, web_viewer=True) as archive:
        for file in (*(folder / "sent").glob("*-image.dcm"), *files.values()):
            archive.upload(file.read_bytes())
        yield Made(archive, case.image_uid, case.lesions, {kind: dcmread(file) for kind, file in files.items()})


@pytest.fixture(scope="module")
def viewer(browser: Browser, made: Made) -> Iterator[Viewer]:
    with ohif.serving(f"{made.archive.url}/dicom-web") as url:
        opened = Viewer(browser, url, str(made.reports["sc"].StudyInstanceUID))
        yield opened
        opened.page.close()


def test_ohif_draws_the_lesions_of_a_mammogram_where_they_are(viewer: Viewer, made: Made) -> None:
    report = made.reports["tid1500"]
    viewer.show(str(report.SOPInstanceUID))
    viewer.wait_drawn(made.image_uid, len(made.lesions))
    viewer.watched.keep("ohif-mammogram")
    found = {annotation.tracking_uid: annotation for annotation in viewer.annotations()}
    assert len(found) == len(made.lesions) == 2
    numbers = [float(item.MeasuredValueSequence[0].NumericValue) for item in items(report, "111047")]
    tracking = [str(item.UID) for item in items(report, "112040")]
    for lesion in made.lesions:
        annotation = found[tracking_uid(lesion)]
        at = [annotation.points.min(axis=0), annotation.points.max(axis=0)]
        expected = [(lesion.left, lesion.top), (lesion.right, lesion.bottom)]
        assert np.abs(np.array(at) - expected).max() <= 1
        percent = numbers[tracking.index(tracking_uid(lesion))]
        assert f"Probability of cancer: {percent:.2f} %" in annotation.labels
    assert viewer.errors == []


def test_ohif_shows_the_picture(viewer: Viewer, made: Made) -> None:
    report = made.reports["sc"]
    viewer.page.evaluate_handle(_THUMBNAIL, str(report.SeriesInstanceUID)).as_element().dblclick()  # type: ignore[union-attr]
    viewer.page.wait_for_function(
        """uid => window.cornerstone.getEnabledElements().some(({viewport}) =>
            viewport.getCurrentImageId?.()?.includes(uid) && viewport.viewportStatus == 'rendered')""",
        arg=str(report.SOPInstanceUID),
    )
    kept = viewer.watched.keep("ohif-picture")
    corners = viewer.on_screen(str(report.SOPInstanceUID), np.array([(0, 0), (report.Columns, report.Rows)], float))
    check_picture(kept, corners, made.picture)


def test_ohif_lists_what_it_does_not_open(viewer: Viewer, made: Made) -> None:
    unsupported = set(
        viewer.page.evaluate(
            """() => window.services.displaySetService.getActiveDisplaySets()
                .filter(set => set.unsupported).map(set => set.SeriesInstanceUID)"""
        )
    )
    assert unsupported == {str(made.reports[kind].SeriesInstanceUID) for kind in ("gsps", "mammo-cad-sr")}
    for uid in unsupported:
        row = viewer.page.evaluate_handle(_THUMBNAIL, uid).as_element()
        assert row is not None and "RESEARCH ONLY" in row.inner_text()


_THUMBNAIL = """uid => { const set = window.services.displaySetService.getActiveDisplaySets()
    .find(set => set.SeriesInstanceUID == uid);
    return set && document.getElementById('thumbnail-' + set.displaySetInstanceUID); }"""


def test_orthanc_s_web_viewer_shows_the_picture(browser: Browser, made: Made) -> None:
    """Opened as a person does, by the button on the series' page of Orthanc Explorer."""
    report = made.reports["sc"]
    (series,) = json.loads(made.archive.rest("/tools/lookup", "POST", str(report.SeriesInstanceUID).encode()))
    watched = Watched(browser)
    page = watched.page
    page.goto(f"{made.archive.url}/app/explorer.html#series?uuid={series['ID']}")
    with page.expect_popup() as opened:
        page.get_by_text("Orthanc Web Viewer").click()
    address = opened.value.url
    opened.value.close()
    assert "/web-viewer/app/viewer.html" in address
    page.goto(address)
    page.get_by_text(DESCRIPTION).wait_for()
    page.wait_for_function("() => document.body.innerText.match(/Zoom:\\s*[\\d.]+x/)")
    zoom = float(page.evaluate("() => document.body.innerText.match(/Zoom:\\s*([\\d.]+)x/)[1]"))
    box = page.locator("canvas").bounding_box()
    assert box is not None and page.get_by_text("Not for diagnostic purpose").is_visible()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    # The viewer writes its zoom with two digits; the picture fills the canvas's height or width.
    exact = min(box["width"] / report.Columns, box["height"] / report.Rows)
    assert abs(exact - zoom) < 0.01
    half = np.array([report.Columns, report.Rows]) * exact / 2
    check_picture(watched.keep("orthanc-web-viewer"), np.array([middle - half, middle + half]), made.picture)
    assert watched.errors == [] and watched.strangers() == []
    page.close()


@pytest.mark.parametrize("kind", ["tid1500", "mammo-cad-sr", "gsps"])
def test_orthanc_s_web_viewer_says_that_it_cannot_show_the_others(kind: str, browser: Browser, made: Made) -> None:
    uid = str(made.reports[kind].SeriesInstanceUID)
    (series,) = json.loads(made.archive.rest("/tools/lookup", "POST", uid.encode()))
    watched = Watched(browser)
    with watched.page.expect_event("dialog") as said:
        watched.page.once("dialog", lambda dialog: dialog.dismiss())
        watched.page.goto(f"{made.archive.url}/web-viewer/app/viewer.html?series={series['ID']}")
    assert "does not support the decoding of this image" in said.value.message
    watched.page.close()


def test_the_pictures_that_classify_wrote_are_the_archive_s(made: Made) -> None:
    """The picture is kept beside the screenshots; what the archive gives back are its pixels."""
    uid = str(made.reports["sc"].SOPInstanceUID)
    stored = dcmread(io.BytesIO(made.archive.instance_file(uid))).pixel_array
    np.testing.assert_array_equal(stored, made.picture)
    OUTPUT.mkdir(exist_ok=True)
    Image.fromarray(made.picture).save(OUTPUT / "picture.png")


def check_picture(screenshot: Path, corners: np.ndarray, picture: np.ndarray) -> None:
    """Between `corners` (left top, right bottom; screen pixels) the screen shows `picture`, but for its
    margins.
    """
    (left, top), (right, bottom) = np.rint(corners).astype(int).tolist()
    shown = np.asarray(Image.open(screenshot).convert("RGB"), float)[top:bottom, left:right]
    assert shown.shape[:2] == (bottom - top, right - left), "it reaches beyond the screen"
    expected = np.asarray(
        Image.fromarray(picture).resize((right - left, bottom - top), Image.Resampling.BILINEAR), float
    )
    rows, columns = (
        slice(*(round(share * length) for share in (part.start, part.stop)))
        for part, length in zip(MIDDLE, shown.shape, strict=False)
    )
    difference = np.abs(shown[rows, columns] - expected[rows, columns])
    assert difference.mean() < 1.2, difference.mean()
    assert np.percentile(difference, 99) < 25, np.percentile(difference, 99)
