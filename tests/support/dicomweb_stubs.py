"""DICOMweb services that give the answers that a test wants, on a free loopback port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from tests.support.http_stubs import Quiet, http_server

STUDY, SERIES = "1.2.3", "1.2.3.4"
ROOT = "/dicom-web"
MULTIPART = 'multipart/related; type="application/dicom"; boundary="b-o.u=n"'


@dataclass(frozen=True)
class Answer:
    """What a stub says; `length`: announced where `body` has another; `drip_s`: after each byte."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/dicom+json"
    length: int | None = None
    drip_s: float = 0


@dataclass
class Asked:
    """What a stub was asked: (path, query, Accept, Authorization) of each GET, in order."""

    requests: list[tuple[str, dict[str, list[str]], str, str | None]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [request[0] for request in self.requests]


@contextmanager
def stub(answer: Callable[[str], Answer | None]) -> Iterator[tuple[str, Asked]]:
    """A DICOMweb service that answers the path asked for, below its root (None: not at all); (its URL, what
    it was asked).
    """
    asked = Asked()
    over = threading.Event()

    class Handler(Quiet):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            asked.requests.append(
                (where.path, parse_qs(where.query), self.headers["Accept"], self.headers["Authorization"])
            )
            reply = answer(where.path.removeprefix(ROOT))
            if reply is None:
                over.wait(10)
                self.close_connection = True
                return
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
            self.end_headers()
            self.close_connection = reply.length is not None
            try:
                for number in range(len(reply.body)) if reply.drip_s else ():
                    self.wfile.write(reply.body[number : number + 1])
                    if over.wait(reply.drip_s):
                        return
                if not reply.drip_s:
                    self.wfile.write(reply.body)
            except OSError:
                self.close_connection = True

    with http_server(Handler) as url:
        try:
            yield url + ROOT, asked
        finally:
            over.set()


def archive(url: str, folder: Path, timeout_s: float = 10, **settings: object) -> Archive:
    named = {"retrieve": "dicomweb", "dicomweb_url": url, "timeout_s": timeout_s} | settings
    return Archive(ArchiveSettings.model_validate(named), "MAMMOD", folder)


def match(uid: str, study: str | None = STUDY, series: str | None = SERIES) -> dict[str, object]:
    """One match of a search, in DICOM JSON (PS3.18 F.2)."""
    named = {"00080018": uid, "0020000D": study, "0020000E": series}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in named.items() if value}


def matches(*found: dict[str, object]) -> Answer:
    return Answer(body=json.dumps(found).encode())


def multipart(content: bytes, before: bytes = b"", end: bytes = b"\r\n--b-o.u=n--\r\n") -> bytes:
    return before + b"--b-o.u=n\r\nContent-Type: application/dicom\r\n\r\n" + content + end


def instance(content: bytes, **how: object) -> Answer:
    return Answer(body=multipart(content), content_type=MULTIPART, **how)  # type: ignore[arg-type]
