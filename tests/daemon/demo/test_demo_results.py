"""Sending to the embedded archive, reading reports back, and what is shown of them."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt
from rich.console import Console

from config.errors import MammodError
from daemon.demo.archive import EmbeddedArchive
from daemon.demo.cases import read_cases
from daemon.demo.lesion_objects import tracking_uid
from daemon.demo.page import outline, write_page
from daemon.demo.results import Row, read_report, write_results
from daemon.demo.run import _clear, _missing, _notes, _show, _wait_for_rows
from daemon.demo.sending import CaseItems, prepare, send
from daemon.lesions.lesion import Region
from tests.support.demo_cases import store_report

TWO_LESIONS, BORDER = 2, 4  # 1-132 with two lesions in an SR, 1-280 with a lesion at the image's edge in a SEG


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[CaseItems]:
    cases = read_cases()
    return prepare([cases[TWO_LESIONS], cases[BORDER]], tmp_path_factory.mktemp("sent"))


def rows_of(prepared: list[CaseItems], folder: Path, trained: bool = False) -> list[Row]:
    rows = []
    for case, probabilities in zip(prepared, ([0.1, 0.9], [0.5]), strict=True):
        _, stored = store_report(case, probabilities, trained, folder)
        reported = {lesion.tracking_uid: lesion for lesion in read_report(stored.path)}
        rows += [Row(case, lesion, reported[tracking_uid(lesion)], 1.5) for lesion in case.case.lesions]
    return rows


def test_images_are_prepared_as_they_are_and_in_the_order_of_sending(prepared: list[CaseItems]) -> None:
    for case in prepared:
        assert case.image.path.read_bytes() == case.case.path.read_bytes()
        assert case.image.uid == case.case.image_uid
        assert [item.path.name for item in case.in_order] == sorted(item.path.name for item in case.in_order)
    assert [item.path.name for case in prepared for item in case.in_order] == [
        "01-1-132-sr.dcm",
        "02-1-132-image.dcm",
        "03-1-280-seg.dcm",
        "04-1-280-image.dcm",
    ]


def test_what_is_sent_arrives_unchanged_and_is_told_in_order(prepared: list[CaseItems], tmp_path: Path) -> None:
    items = [item for case in prepared for item in case.in_order]
    told: list[tuple[str, float]] = []
    with EmbeddedArchive(tmp_path, "DEMOARCHIVE") as archive:
        send(items, ("127.0.0.1", archive.port), "DEMOARCHIVE", lambda item, at: told.append((item.uid, at)))
        held = archive.stored()
    assert [uid for uid, _ in told] == [item.uid for item in items] == list(held)
    for item, (uid, at) in zip(items, told, strict=True):
        assert pydicom.dcmread(held[uid].path) == pydicom.dcmread(item.path)
        assert held[uid].at <= at


def test_a_refused_object_ends_the_sending_with_its_status(prepared: list[CaseItems]) -> None:
    ae = AE("REFUSES")
    for item in prepared[0].in_order:
        ae.add_supported_context(item.meta.MediaStorageSOPClassUID, item.meta.TransferSyntaxUID)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0xA700)])
    told: list[str] = []
    try:
        with pytest.raises(MammodError, match=r"01-1-132-sr\.dcm: status A700H"):
            address = ("127.0.0.1", server.server_address[1])
            send(prepared[0].in_order, address, "REFUSES", lambda item, at: told.append(item.uid))
    finally:
        server.shutdown()
    assert told == []


def test_nobody_there_is_said_with_the_address(prepared: list[CaseItems]) -> None:
    with pytest.raises(MammodError, match=r"ARCHIVE at 127\.0\.0\.1:1 did not accept"):
        send(prepared[0].in_order, ("127.0.0.1", 1), "ARCHIVE", lambda item, at: None)


def test_a_report_is_read_back_as_it_was_written(prepared: list[CaseItems], tmp_path: Path) -> None:
    first, second, third = rows_of(prepared, tmp_path)
    assert [row.reported.probability for row in (first, second, third)] == pytest.approx([0.1, 0.9, 0.5])
    assert [row.reported.malignant for row in (first, second, third)] == [False, True, True]
    assert first.reported.image_uid == prepared[0].image.uid
    np.testing.assert_allclose(third.reported.region.points[0], (6, 2930))  # the box of 1-280 in the table
    assert {row.reported.trained for row in (first, second, third)} == {False}
    assert {row.reported.trained for row in rows_of(prepared, tmp_path / "trained", trained=True)} == {True}


def test_a_report_without_its_probability_is_refused(prepared: list[CaseItems], tmp_path: Path) -> None:
    _, stored = store_report(prepared[1], [0.5], False, tmp_path)
    report = pydicom.dcmread(stored.path)
    measurements = next(
        item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    )
    group = measurements.ContentSequence[0]
    group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "NUM"]
    report.save_as(stored.path)
    with pytest.raises(MammodError, match="0 probabilities of cancer"):
        read_report(stored.path)


def test_results_json_has_one_row_for_each_lesion(prepared: list[CaseItems], tmp_path: Path) -> None:
    rows = rows_of(prepared, tmp_path / "reports")
    write_results(tmp_path / "results.json", rows)
    read = json.loads((tmp_path / "results.json").read_text())
    assert [(row["image"], row["lesion"]) for row in read] == [("1-132", 1), ("1-132", 2), ("1-280", 1)]
    last = read[-1]
    assert last["truth"] == "malignant"
    assert (last["probability"], last["class"], last["seconds"]) == (0.5, "malignant", 1.5)
    assert last["outline"]["points"][0] == [6, 2930]
    assert last["source_uid"] == pydicom.dcmread(prepared[1].lesion_object.path).SOPInstanceUID
    assert (tmp_path / last["report"]).is_file()


class Page(HTMLParser):
    """Counts the page's pictures and collects every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]


def test_the_page_shows_every_lesion_and_needs_nothing_from_elsewhere(
    prepared: list[CaseItems], tmp_path: Path
) -> None:
    rows = rows_of(prepared, tmp_path / "reports")
    write_page(tmp_path / "index.html", rows, ["Research use only & so on"])
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("article") == 3
    assert page.tags.count("image") == 6
    assert "Research use only &amp; so on" in text
    assert text.count("90.00 %") == 2
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "@import" not in text and "url(" not in text
    for address in page.addresses:
        assert address.startswith(("data:image/png;base64,", "#lesion-")) or (tmp_path / address).is_file()


def test_a_close_up_shows_the_whole_region_also_at_the_edge(prepared: list[CaseItems], tmp_path: Path) -> None:
    rows = rows_of(prepared, tmp_path / "reports")
    write_page(tmp_path / "index.html", rows, [])
    boxes = re.findall(r'<svg class="close" viewBox="(\d+) (\d+) (\d+) (\d+)"', (tmp_path / "index.html").read_text())
    assert len(boxes) == 3
    for box, row in zip(boxes, rows, strict=True):
        left, top, width, height = map(int, box)
        assert left <= row.lesion.left and row.lesion.right <= left + width
        assert top <= row.lesion.top and row.lesion.bottom <= top + height


def test_outlines_keep_their_coordinates() -> None:
    ellipse = Region("ELLIPSE", np.array([(10, 20), (16, 28), (9, 27), (17, 21)], dtype=float))  # axes 10 and 10
    element = ET.fromstring(outline(ellipse))
    assert (float(element.attrib["rx"]), float(element.attrib["ry"])) == (5, 5)
    turn = math.degrees(math.atan2(8, 6))
    assert element.attrib["transform"] == f"translate(13 24) rotate({turn:g})"
    circle = ET.fromstring(outline(Region("CIRCLE", np.array([(10, 20), (13, 24)], dtype=float))))
    assert (circle.attrib["cx"], circle.attrib["cy"], float(circle.attrib["r"])) == ("10", "20", 5)
    polyline = ET.fromstring(outline(Region("POLYLINE", np.array([(1, 2), (3.5, 4)], dtype=float))))
    assert polyline.attrib["points"] == "1,2 3.5,4"


class SilentService:
    """Stands in for the service where only its answers matter."""

    def __init__(self, failures: dict[str, str]) -> None:
        self._failures = failures

    def check_running(self) -> None:
        pass

    def failures(self) -> dict[str, str]:
        return self._failures


class NoProgress:
    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None:
        pass


def test_waiting_counts_from_the_later_object_and_ends_when_the_rest_cannot_come(
    prepared: list[CaseItems], tmp_path: Path
) -> None:
    uid, stored = store_report(prepared[0], [0.1, 0.9], False, tmp_path)
    sent_at = {prepared[0].lesion_object.uid: stored.at - 7, prepared[0].image.uid: stored.at - 2}
    failures = {prepared[1].lesion_object.uid: "quarantined: cannot be read"}
    rows = _wait_for_rows(
        prepared,
        lambda: {uid: stored},
        SilentService(failures),  # type: ignore[arg-type]
        sent_at,
        NoProgress(),  # type: ignore[arg-type]
    )
    assert [row.name for row in rows] == ["1-132 lesion 1", "1-132 lesion 2"]
    assert [row.seconds for row in rows] == pytest.approx([2, 2])
    assert _missing(prepared, rows, failures) == ["no result for 1-280 lesion 1: quarantined: cannot be read"]


def test_the_table_has_the_results_and_the_notes_say_untrained(prepared: list[CaseItems], tmp_path: Path) -> None:
    rows = rows_of(prepared, tmp_path / "reports")
    console = Console(file=StringIO(), width=80)
    _show(console, tmp_path, rows, _notes(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "90.00 %" in text and "1-280" in text and "SEG, first" in text
    assert "Research use only" in text and "UNTRAINED" in text
    notes = " ".join(_notes(rows_of(prepared, tmp_path / "trained", trained=True)))
    assert "UNTRAINED" not in notes and "Ten lesions are too few to measure accuracy" in notes


def test_an_earlier_run_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "sent/1.dcm",
        "reports/2.dcm",
        "results.json",
        "index.html",
        "notes.txt",
        "sent/notes.txt",
        "other.dcm",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _clear(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "sent/notes.txt", "other.dcm"}
