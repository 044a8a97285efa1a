"""QIDO-RS and WADO-RS: what is asked, and what becomes of each answer; the real peer is in tests/peers."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.archive import wado_rs
from daemon.archive.query_retrieve import RetrieveKind, RetrieveOutcome, Wanted
from daemon.archive.store_status import OutgoingInstance
from daemon.archive.wado_rs import first_part
from daemon.errors import ArchiveError, RefusedInstance
from daemon.storage.received_instance import ReceivedInstance
from tests.support.archive_stubs import outgoing
from tests.support.dicomweb_stubs import (
    MULTIPART,
    ROOT,
    SERIES,
    STUDY,
    Answer,
    archive,
    instance,
    match,
    matches,
    multipart,
    stub,
)
from tests.support.peers.programs import free_port

RETRIEVED, MISSING, RETRY, FAILED = RetrieveKind
# --- search ----------------------------------------------------------------------------------------

WANTED = Wanted(STUDY, None, "1.2.3.4.5")
FULL = Wanted(STUDY, SERIES, "1.2.3.4.5")


def test_the_search_names_the_instance_and_asks_for_study_and_series(tmp_path: Path) -> None:
    with stub(lambda path: matches(match("1.2.3.4.6"), match("1.2.3.4.5"))) as (url, asked):
        assert archive(url, tmp_path).find_instances([Wanted(None, None, "1.2.3.4.5"), WANTED]) == [FULL, FULL]
    for path, query, accept, _ in asked.requests:
        assert (path, accept) == (f"{ROOT}/instances", "application/dicom+json")
        assert query == {"SOPInstanceUID": ["1.2.3.4.5"], "includefield": ["0020000D", "0020000E"]}
    assert len(asked.requests) == 2


@pytest.mark.parametrize("whole", [Answer(404), Answer(400), Answer(501), Answer(500), Answer(204), matches()])
def test_the_study_is_searched_where_the_archive_does_not_search_beyond_it(whole: Answer, tmp_path: Path) -> None:
    def answer(path: str) -> Answer:
        return whole if path == "/instances" else matches(match("1.2.3.4.5", study=None))

    with stub(answer) as (url, asked):
        assert archive(url, tmp_path).find_instances([WANTED]) == [FULL]
    assert asked.paths == [f"{ROOT}/instances", f"{ROOT}/studies/1.2.3/instances"]


@pytest.mark.parametrize(
    "nothing",
    [
        matches(),
        Answer(204),
        Answer(400),
        Answer(404),
        matches(match("1.2.3.4.6")),
        matches(match("1.2.3.4.5", series=None)),
        matches(match("1.2.3.4.5", series="../../secrets")),
    ],
)
def test_what_the_archive_does_not_hold_or_cannot_name_is_not_found(nothing: Answer, tmp_path: Path) -> None:
    with stub(lambda path: nothing) as (url, _):
        assert archive(url, tmp_path).find_instances([WANTED]) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401), "HTTP 401"),
        (Answer(403), "HTTP 403"),
        (Answer(302), "HTTP 302"),
        (Answer(500), "HTTP 500"),
        (Answer(503), "HTTP 503"),
        (Answer(body=b"<html>please log in</html>", content_type="text/html"), "text/html"),
        (Answer(body=b"[1]"), "no DICOM JSON"),
        (Answer(body=b'{"a": 1}'), "no DICOM JSON"),
        (Answer(body=b"[" * 100_000), "no DICOM JSON"),
        (None, "TimeoutError"),
    ],
)
def test_an_archive_that_cannot_be_asked_says_why(answer: Answer | None, said: str, tmp_path: Path) -> None:
    with stub(lambda path: answer) as (url, _), pytest.raises(ArchiveError, match=rf"{said}.*archive\.dicomweb_url"):
        archive(url, tmp_path, timeout_s=0.4).find_instances([WANTED])


def test_an_answer_that_is_cut_off_for_its_time_is_a_timeout_whichever_thread_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shut, reader_done = wado_rs._shut, threading.Event()

    def lingering(*arguments: Any) -> None:
        shut(*arguments)
        reader_done.wait(5)  # the timer's thread goes on only after the reader has raised

    monkeypatch.setattr(wado_rs, "_shut", lingering)
    with (
        stub(lambda path: None) as (url, _),
        closing(HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=30)) as line,
    ):
        try:
            with (
                pytest.raises(TimeoutError, match=r"no whole answer in 0\.2 s"),
                wado_rs._answer(line, "/", {"Accept": "*/*"}, 0.2),
            ):
                pass
        finally:
            reader_done.set()


def test_nobody_there_is_an_archive_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"archive\.dicomweb_url"):
        archive(f"http://127.0.0.1:{free_port()}", tmp_path).find_instances([WANTED])
    with pytest.raises(ArchiveError, match="no DICOMweb service is set"):
        archive("", tmp_path).find_instances([WANTED])


# --- fetch -----------------------------------------------------------------------------------------


class Taken:
    """An intake that keeps what it is given, and refuses with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.incoming: list[ReceivedInstance] = []
        self._error = error

    def __call__(self, incoming: ReceivedInstance) -> None:
        if self._error:
            raise self._error
        self.files[incoming.sop_instance_uid] = incoming.path.read_bytes()
        self.incoming.append(incoming)


def wanted(item: OutgoingInstance) -> Wanted:
    return Wanted(STUDY, SERIES, item.sop_instance_uid)


def path_of(item: OutgoingInstance) -> str:
    return f"{ROOT}/studies/{STUDY}/series/{SERIES}/instances/{item.sop_instance_uid}"


def fetched(
    answer: Answer | None, item: OutgoingInstance, folder: Path, taken: Taken, max_size: int = 1 << 20
) -> RetrieveOutcome:
    """The outcome for `item` of an archive that always says `answer`; nothing is left in the folder."""
    (folder / "incoming").mkdir(exist_ok=True)
    with stub(lambda path: answer) as (url, _):
        [outcome] = archive(url, folder / "incoming", timeout_s=0.2).get_instances([wanted(item)], taken, max_size)
    assert list((folder / "incoming").iterdir()) == []
    return outcome


def test_each_instance_is_asked_for_by_its_path_and_taken_unchanged(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "token").write_text("secret")
    items = [outgoing(tmp_path) for _ in range(3)]
    held = {path_of(item).removeprefix(ROOT): instance(item.path.read_bytes()) for item in items}
    taken = Taken()
    with stub(lambda path: held[path]) as (url, asked):
        client = archive("", tmp_path / "incoming", stow_url=f"{url}/studies", dicomweb_token_file=tmp_path / "token")
        outcomes = client.get_instances(map(wanted, items), taken)
    assert [outcome.kind for outcome in outcomes] == [RETRIEVED] * 3
    assert taken.files == {item.sop_instance_uid: item.path.read_bytes() for item in items}
    assert asked.paths == list(map(path_of, items))
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert {request[2:] for request in asked.requests} == {(accept, "Bearer secret")}
    first = taken.incoming[0]
    assert (first.sop_class_uid, first.transfer_syntax_uid) == (items[0].sop_class_uid, items[0].transfer_syntax_uid)
    assert list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, RETRY), (403, RETRY), (404, MISSING), (410, MISSING), (406, FAILED), (400, FAILED)]
    + [(status, RETRY) for status in (204, 206, 302, 429, 500, 503)],
)
def test_each_status_is_judged(status: int, kind: RetrieveKind, tmp_path: Path) -> None:
    body = b"" if status == 204 else b"said " * 50_000
    outcome = fetched(Answer(status, body), outgoing(tmp_path), tmp_path, Taken())
    assert outcome.kind is kind and f"HTTP {status}" in outcome.reason


def test_an_answer_that_breaks_off_or_stalls_is_retried(tmp_path: Path) -> None:
    item, taken = outgoing(tmp_path), Taken()
    content = item.path.read_bytes()
    cut = multipart(content)[:-40]
    login = Answer(body=b"<html>", content_type="text/html")
    for answer in (
        Answer(body=cut, content_type=MULTIPART, length=len(cut) + 40),  # the connection is closed early
        Answer(body=multipart(content, end=b""), content_type=MULTIPART),  # so is the multipart
        instance(content, length=1 << 20, drip_s=0.05),  # each byte in time, all of them never
        Answer(body=b"x" * (1 << 20), content_type=MULTIPART),
        Answer(content_type=MULTIPART),
        login,
        None,
    ):
        assert fetched(answer, item, tmp_path, taken).kind is RETRY, answer
    assert taken.files == {}


def test_what_is_not_the_sound_instance_asked_for_is_refused(tmp_path: Path) -> None:
    item, other, taken = outgoing(tmp_path), outgoing(tmp_path), Taken()
    content = item.path.read_bytes()
    syntax = b"1.2.840.10008.1.2.1\0"
    for wrong in (
        other.path.read_bytes(),
        b"",
        b"nothing of DICOM" * 100,
        content[132:],
        content[:-5],
        content[:140] + b"\xff\xff\xff\xff" + content[144:],
        content.replace(syntax, b"1.2.840.10008.1.2.2\0", 1),  # names big endian, is little endian
        content.replace(syntax, b"1.2.840.10008.1.9.9\0", 1),
    ):
        outcome = fetched(instance(wrong), item, tmp_path, taken)
        assert outcome.kind is FAILED and outcome.status in (0xA900, 0xC000), wrong[:150]
    outcome = fetched(instance(content), item, tmp_path, taken, max_size=len(content) - 1)
    assert (outcome.kind, outcome.status) == (FAILED, 0xC000)
    assert taken.files == {}
    assert fetched(instance(content), item, tmp_path, taken, max_size=len(content)).kind is RETRIEVED


def test_an_intake_that_has_no_room_asks_again(tmp_path: Path) -> None:
    item = outgoing(tmp_path)
    for error in (RefusedInstance(0xA700, "full"), OSError(28, "No space left on device")):
        outcome = fetched(instance(item.path.read_bytes()), item, tmp_path, Taken(error))
        assert (outcome.kind, outcome.status) == (RETRY, 0xA700)


def test_silence_costs_one_instance_and_twice_in_a_row_the_rest(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(6)]
    silent = {path_of(items[number]).removeprefix(ROOT) for number in (1, 3, 4)}
    held = {path_of(item).removeprefix(ROOT): instance(item.path.read_bytes()) for item in items}
    taken = Taken()
    with stub(lambda path: None if path in silent else held[path]) as (url, asked):
        outcomes = archive(url, tmp_path, timeout_s=0.1).get_instances(map(wanted, items), taken)
    assert [outcome.kind for outcome in outcomes] == [RETRIEVED, RETRY, RETRIEVED, RETRY, RETRY, RETRY]
    assert len(asked.requests) == 5


def test_a_big_instance_is_never_held_in_memory(tmp_path: Path) -> None:
    """The part goes on for ever: what is taken of it ends at the limit."""
    item = outgoing(tmp_path)
    listening = socket.create_server(("127.0.0.1", 0))
    sent = 0

    def serve() -> None:
        nonlocal sent
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\nConnection: close\r\n\r\n".encode()
            connection.sendall(head + multipart(item.path.read_bytes(), end=b""))
            try:
                while sent < 1 << 30:
                    sent += connection.send(bytes(1 << 16))
            except OSError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    (tmp_path / "incoming").mkdir()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    [outcome] = archive(url, tmp_path / "incoming").get_instances([wanted(item)], Taken(), max_size=4 << 20)
    thread.join(20)
    listening.close()
    assert (outcome.kind, outcome.status) == (FAILED, 0xC000)
    assert 4 << 20 <= sent < 64 << 20, "the limit and what the sockets' buffers hold"
    assert list((tmp_path / "incoming").iterdir()) == []


@given(
    content=st.binary(max_size=300).filter(lambda content: b"\r\n--b" not in content),
    before=st.sampled_from([b"", b"\r\n", b"a preamble\r\n"]),
    sizes=st.lists(st.integers(1, 40), min_size=1),
)
def test_the_first_part_is_found_however_its_bytes_arrive(content: bytes, before: bytes, sizes: list[int]) -> None:
    body = before + b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--b\r\n\r\nanother\r\n--b--\r\n"
    source = BytesIO(body)
    turn = iter(sizes * len(body))
    assert b"".join(first_part(lambda _: source.read(next(turn)), "b")) == content
    cut = BytesIO(body[: len(before) + 43 + len(content)])
    with pytest.raises(ArchiveError):
        list(first_part(cut.read, "b"))


def test_a_long_excuse_for_one_instance_does_not_spoil_the_next(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(2)]
    held = {
        path_of(items[0]).removeprefix(ROOT): Answer(503, b"said " * 100_000),
        path_of(items[1]).removeprefix(ROOT): instance(items[1].path.read_bytes()),
    }
    with stub(lambda path: held[path]) as (url, _):
        outcomes = archive(url, tmp_path).get_instances(map(wanted, items), Taken())
    assert [outcome.kind for outcome in outcomes] == [RETRY, RETRIEVED]
