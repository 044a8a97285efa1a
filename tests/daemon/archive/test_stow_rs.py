"""STOW-RS: what is sent, and how each answer of PS3.18 is judged; the real peer is in tests/peers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path

import pytest

from config.settings import TLS
from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.stow_rs import judge
from daemon.errors import ArchiveError
from daemon.events.outcomes import StoreOutcomeKind
from tests.support.archive_stubs import outgoing
from tests.support.http_stubs import Quiet, http_server
from tests.support.peers.certificates import Authority
from tests.support.peers.programs import free_port

STORED, RETRY, FAILED = StoreOutcomeKind.STORED, StoreOutcomeKind.RETRY, StoreOutcomeKind.FAILED
UID, JSON, XML = "1.2.3", "application/dicom+json", "application/dicom+xml"


def answer(stored: str | None = None, failed: str | None = None, reason: int | None = None) -> bytes:
    """A store response in DICOM JSON (PS3.18 F.2)."""

    def sequence(uid: str, tag: str) -> dict[str, object]:
        item: dict[str, object] = {"00081155": {"vr": "UI", "Value": [uid]}}
        if reason is not None:
            item[tag] = {"vr": "US", "Value": [reason]}
        return {"vr": "SQ", "Value": [item]}

    dataset = {}
    if stored:
        dataset["00081199"] = sequence(stored, "00081196")
    if failed:
        dataset["00081198"] = sequence(failed, "00081197")
    return json.dumps(dataset).encode()


# The example of PS3.18 (a failed and a stored instance), shortened.
EXAMPLE = b"""<?xml version="1.0" encoding="utf-8"?>
<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
  <DicomAttribute tag="00081198" vr="SQ" keyword="FailedSOPSequence"><Item number="1">
    <DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID"><Value number="1">1.9</Value></DicomAttribute>
    <DicomAttribute tag="00081197" vr="US" keyword="FailureReason"><Value number="1">42752</Value></DicomAttribute>
  </Item></DicomAttribute>
  <DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence"><Item number="1">
    <DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID"><Value number="1">1.2.3</Value></DicomAttribute>
    <DicomAttribute tag="00081196" vr="US" keyword="WarningReason"><Value number="1">45056</Value></DicomAttribute>
  </Item></DicomAttribute>
</NativeDicomModel>"""


@pytest.mark.parametrize(
    ("http", "content_type", "body", "kind", "status"),
    [
        (200, JSON, answer(stored=UID), STORED, 0x0000),
        (202, JSON, answer(stored=UID, reason=0xB000), STORED, 0xB000),
        (200, "application/json", b"[" + answer(stored=UID) + b"]", STORED, 0x0000),
        (200, XML, EXAMPLE, STORED, 0xB000),
        (202, XML, EXAMPLE.replace(b"1.2.3", b"1.8").replace(b"1.9", b"1.2.3"), RETRY, 0xA700),
        (409, JSON, answer(failed=UID, reason=0xA700), RETRY, 0xA700),
        (409, JSON, answer(failed=UID, reason=0x0110), FAILED, 0x0110),
        (409, JSON, answer(failed=UID, reason=0xC122), FAILED, 0xC122),
        (409, JSON, answer(failed=UID, reason=0x0111), STORED, 0x0111),
        (409, JSON, answer(failed=UID, reason=0xB000), FAILED, 0xB000),
        (409, JSON, answer(failed=UID), FAILED, None),
        (200, JSON, answer(stored="1.9"), RETRY, None),
        (200, "text/html", b"<html>please log in</html>", RETRY, None),
        (200, JSON, b"", RETRY, None),
        (200, JSON, b'"text"', RETRY, None),
        (200, JSON, b'{"00081199": {"Value": [{"00081155": 1}]}}', RETRY, None),
        (200, XML, b"<broken", RETRY, None),
        (400, "text/plain", b"", FAILED, None),
        (415, "text/plain", b"", FAILED, None),
        (401, "text/plain", b"", RETRY, None),
        (404, "text/plain", b"", RETRY, None),
        (429, "text/plain", b"", RETRY, None),
        (302, "text/html", b"", RETRY, None),
        (500, "text/plain", b"", RETRY, None),
        (503, "text/plain", b"", RETRY, None),
    ],
)
def test_each_answer_is_judged(
    http: int, content_type: str, body: bytes, kind: StoreOutcomeKind, status: int | None
) -> None:
    outcome = judge(http, content_type, body, UID)
    assert (outcome.kind, outcome.status) == (kind, status)
    assert outcome.reason.startswith(f"HTTP {http}: ")


authorizations: list[str | None] = []
"""What the servers of these tests were shown, in order."""


@contextmanager
def server(
    answers: list[tuple[int, bytes] | None], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, bytes]], list[object]]]:
    """Serve `answers` in turn over HTTP (None: none); yield its URL, (path, part received), connections."""
    parts: list[tuple[str, bytes]] = []
    connections: list[object] = []
    left = iter(answers)
    over = threading.Event()

    class Handler(Quiet):
        def setup(self) -> None:
            connections.append(self.client_address)
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
            [part] = message.get_payload()
            assert part.get_content_type() == "application/dicom"
            boundary = b"--" + message.get_boundary().encode()
            part_bytes = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n" + boundary + b"--", 1)[0]
            parts.append((self.path, part_bytes))
            authorizations.append(self.headers["Authorization"])
            reply = next(left)
            if reply is None:
                over.wait(10)
                return
            self.send_response(reply[0])
            self.send_header("Content-Type", JSON)
            self.send_header("Content-Length", str(len(reply[1])))
            self.end_headers()
            self.wfile.write(reply[1])

    with http_server(Handler, tls) as url:
        try:
            yield f"{url}/dicom-web", parts, connections
        finally:
            over.set()


def stow_archive(url: str, folder: Path, timeout_s: float = 10) -> Archive:
    return Archive(ArchiveSettings(stow_url=url, timeout_s=timeout_s), "MAMMOD", folder)


@pytest.mark.parametrize("ending", ["", "/", "/studies"])
def test_each_file_is_one_part_unchanged_on_one_connection(ending: str, tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(3)]
    gone = outgoing(tmp_path)
    gone.path.unlink()
    uids = [item.sop_instance_uid for item in items]
    answers = [(200, answer(uids[0])), (409, answer(failed=uids[1], reason=0xC000)), (200, answer(uids[2]))]
    with server(list(answers)) as (url, parts, connections):
        outcomes = list(stow_archive(url + ending, tmp_path).store([items[0], gone, *items[1:]]))
    assert [outcome.kind for outcome in outcomes] == [STORED, FAILED, FAILED, STORED]
    assert [outcome.sop_instance_uid for outcome in outcomes] == [uids[0], gone.sop_instance_uid, *uids[1:]]
    assert parts == [("/dicom-web/studies", item.path.read_bytes()) for item in items]
    assert len(connections) == 1


def test_silence_costs_one_item_and_twice_in_a_row_the_rest(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(6)]
    answers = [(200, answer(item.sop_instance_uid)) for item in items]
    with server([answers[0], None, answers[2], None, None]) as (url, parts, _):
        outcomes = list(stow_archive(url, tmp_path, timeout_s=0.4).store(items))
    assert [outcome.kind for outcome in outcomes] == [STORED, RETRY, STORED, RETRY, RETRY, RETRY]
    assert len(parts) == 5


def test_nobody_there_is_retried(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    outcomes = list(stow_archive(url, tmp_path).store([outgoing(tmp_path), outgoing(tmp_path)]))
    assert [outcome.kind for outcome in outcomes] == [RETRY, RETRY]
    assert "archive.stow_url" in outcomes[0].reason
    with pytest.raises(ArchiveError, match=r"archive\.stow_url"):
        stow_archive(url, tmp_path).echo()


def test_echo_is_a_connection(tmp_path: Path) -> None:
    with server([]) as (url, _, _):
        stow_archive(url, tmp_path).echo()


def with_token(url: str, folder: Path, content: bytes | None) -> Archive:
    file = folder / "token"
    if content is not None:
        file.write_bytes(content)
    return Archive(ArchiveSettings(stow_url=url, dicomweb_token_file=file, timeout_s=10), "MAMMOD", folder)


def test_the_token_of_the_file_goes_out_with_each_instance_and_is_read_anew(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(3)]
    del authorizations[:]
    with server([(200, answer(item.sop_instance_uid)) for item in items]) as (url, _, _):
        archive = with_token(url, tmp_path, b"first.token-1==\n")
        assert [outcome.kind for outcome in archive.store(items[:2])] == [STORED, STORED]
        (tmp_path / "token").write_bytes(b"second")
        assert [outcome.kind for outcome in archive.store(items[2:])] == [STORED]
    assert authorizations == ["Bearer first.token-1==", "Bearer first.token-1==", "Bearer second"]


@pytest.mark.parametrize("content", [None, b"", b"PLANTED two", b"PLANTED\r\nX-Evil: 1", "PLANTED\u00e9".encode()])
def test_a_file_without_a_token_delays_and_is_not_quoted(content: bytes | None, tmp_path: Path) -> None:
    with server([]) as (url, parts, _):
        archive = with_token(url, tmp_path, content)
        [outcome] = archive.store([outgoing(tmp_path)])
        assert outcome.kind is RETRY and "archive.dicomweb_token_file" in outcome.reason
        assert "PLANTED" not in outcome.reason
        with pytest.raises(ArchiveError, match=r"archive\.dicomweb_token_file") as refused:
            archive.echo()
        assert "PLANTED" not in str(refused.value)
    assert parts == []


def test_a_token_is_never_sent_in_clear_to_another_machine(tmp_path: Path) -> None:
    archive = with_token("http://192.0.2.1/dicom-web", tmp_path, b"PLANTED")
    [outcome] = archive.store([outgoing(tmp_path)])
    assert outcome.kind is RETRY and "https" in outcome.reason and "PLANTED" not in outcome.reason


def test_https_shows_our_certificate_and_the_token_to_the_host_that_it_is_for(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "certificates"), Authority(tmp_path / "others")
    theirs, ours = authority.issue("archive"), authority.issue("mammod")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.key)
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    (tmp_path / "token").write_text("secret")
    item = outgoing(tmp_path)
    del authorizations[:]

    with server([(200, answer(item.sop_instance_uid))], context) as (url, parts, _):

        def sent(to: str, tls: TLS) -> StoreOutcomeKind:
            settings = ArchiveSettings(stow_url=to, dicomweb_token_file=tmp_path / "token", tls=tls, timeout_s=10)
            [outcome] = Archive(settings, "MAMMOD", tmp_path).store([item])
            return outcome.kind

        good = ours.tls(authority.file)
        assert sent(url, stranger.issue("mammod").tls(authority.file)) is RETRY
        assert sent(url, ours.tls(stranger.file)) is RETRY
        assert sent(url.replace("localhost", "127.0.0.1"), good) is RETRY, "the certificate is not for this name"
        assert authorizations == parts == []
        assert sent(url, good) is STORED
    assert authorizations == ["Bearer secret"]
