"""OHIF in Chromium on a real archive: each lesion is drawn where it was marked, with its probability.

The places are checked twice: in the viewer's annotation state (in image pixels, by the viewer's own
functions), and in a picture of the page, where the outline must lie around the bright pixels of the lesion.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.support.browser.fixtures import Read, ReadingRoom
from tests.support.browser.ohif import Annotation, Viewer
from tests.support.browser.studies import Marked
from tests.support.report_objects import items

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

CASES = ("SEG", "boxes", "shapes", "CC and MLO", "SEG, no spacing", "SR, no spacing")
MARGIN = 6  # screen pixels around a lesion in which its outline is looked for
STROKE = 1.5  # screen pixels by which the outline's outer edge lies beside the place that it marks
HALF = 171  # grey value on the screen half-way between the phantom's breast and its lesions


@pytest.fixture(scope="module")
def viewer(browser: Browser, ohif_url: str, reading_room: ReadingRoom) -> Iterator[Viewer]:
    opened = Viewer(browser, ohif_url, reading_room.study_uid)
    yield opened
    opened.page.close()


def test_every_report_is_listed_as_research(viewer: Viewer, reading_room: ReadingRoom) -> None:
    listed = viewer.listed()
    for read in reading_room.reports.values():
        assert "RESEARCH ONLY" in listed[read.uid]


@pytest.mark.parametrize("case", CASES)
def test_each_lesion_is_drawn_at_its_place_with_its_probability(
    case: str, viewer: Viewer, reading_room: ReadingRoom
) -> None:
    read = reading_room.reports[case]
    viewer.show(read.uid)
    # Of a report on several images OHIF opens the first; it knows the places on the others all the same.
    image = read.source.lesions[0].image_uid
    here = {
        probability: lesion
        for probability, lesion in zip(read.probabilities, read.source.lesions, strict=True)
        if lesion.image_uid == image
    }
    viewer.wait_drawn(image, len(here))
    viewer.watched.keep(f"ohif-{case.replace(', ', '-').replace(' ', '-')}")
    written = [line for line in viewer.texts() if "cancer" in line]
    assert sorted(written) == sorted(f"Probability of cancer: {probability}" for probability in here)
    picture = viewer.outlines_only()
    for lesion in here.values():
        if lesion.graphic_type != "POINT":  # OHIF draws an arrow to it
            check_picture(picture, viewer, lesion)
    check_state(viewer.annotations(), read)


def check_state(annotations: list[Annotation], read: Read) -> None:
    """Every lesion of the report is among the annotations: its box to one pixel, and its probability."""
    ours = {annotation.tracking_uid: annotation for annotation in annotations}
    tracking = [str(item.UID) for item in items(read.report, "112040")]
    assert len(set(tracking)) == len(read.source.lesions)
    for uid, lesion, probability in zip(tracking, read.source.lesions, read.probabilities, strict=True):
        annotation = ours[uid]
        assert annotation.image_uid == lesion.image_uid
        low, high = annotation.points.min(axis=0), annotation.points.max(axis=0)
        assert np.abs(np.concatenate([low, high]) - lesion.box).max() <= 1, (lesion, annotation)
        assert f"Probability of cancer: {probability}" in annotation.labels


def check_picture(picture: bytes, viewer: Viewer, lesion: Marked) -> None:
    """On the screen the outline's box and that of the bright pixels are the same, to one pixel of the
    image.
    """
    corners = viewer.on_screen(lesion.image_uid, lesion.box.reshape(2, 2))
    zoom = float(np.ptp(corners[:, 0]) / (lesion.box[2] - lesion.box[0]))
    left, top = np.floor(corners[0]).astype(int) - MARGIN
    right, bottom = np.ceil(corners[1]).astype(int) + MARGIN
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), int)[top:bottom, left:right]
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    bright = box((red > HALF) & (green > HALF) & (blue > HALF))
    outline = box((green > 180) & (blue < 90))
    assert np.abs(outline - bright).max() <= zoom + STROKE, f"outline {outline}, lesion {bright}, zoom {zoom:.2f}"


def box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    assert len(rows), "nothing there"
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_rectangles_become_measurements_of_the_viewer_on_every_image(
    browser: Browser, ohif_url: str, reading_room: ReadingRoom
) -> None:
    """OHIF offers to take over what its own tools can draw: then the rectangles are its own, in place, on
    both views.
    """
    viewer = Viewer(browser, ohif_url, reading_room.study_uid)
    read = reading_room.reports["CC and MLO"]
    viewer.show(read.uid)
    viewer.page.get_by_text("Do you want to continue tracking measurements").wait_for()
    viewer.page.get_by_role("button", name="Yes").click()
    viewer.page.wait_for_function(
        "() => window.services.measurementService.getMeasurements().length == 2", timeout=30_000
    )
    boxes = [
        (lesion, probability)
        for lesion, probability in zip(read.source.lesions, read.probabilities, strict=True)
        if lesion.graphic_type == "POLYLINE"
    ]
    found = {annotation.image_uid: annotation for annotation in viewer.annotations("RectangleROI")}
    assert len(found) == len(boxes) == 2
    for lesion, probability in boxes:
        taken = found[lesion.image_uid]
        at = np.asarray(taken.handles)
        assert np.abs(np.concatenate([at.min(axis=0), at.max(axis=0)]) - lesion.box).max() <= 1
        assert taken.label == f"Probability of cancer: {probability}"
        viewer.open_image(lesion.image_uid)
        viewer.wait_drawn(lesion.image_uid, 1)
        viewer.watched.keep(f"ohif-taken-over-{'CC' if lesion is boxes[0][0] else 'MLO'}")
        check_picture(viewer.outlines_only(), viewer, lesion)
    viewer.page.close()


def test_nothing_to_classify_is_listed_and_harms_no_other_report(
    browser: Browser, ohif_url: str, reading_room: ReadingRoom
) -> None:
    """OHIF has no place to open it on: its view stays black, without an error, and goes on to the next
    report.
    """
    viewer = Viewer(browser, ohif_url, reading_room.study_uid)
    nothing, other = reading_room.reports["nothing"], reading_room.reports["SEG"]
    assert "RESEARCH ONLY: no result: nothing to classify" in viewer.listed()[nothing.uid]
    viewer.show(nothing.uid)
    viewer.watched.keep("ohif-nothing")
    assert viewer.texts() == [] and viewer.annotations() == []
    viewer.show(other.uid)
    viewer.wait_drawn(other.source.lesions[0].image_uid, len(other.source.lesions))
    assert viewer.errors == []
    viewer.page.close()
