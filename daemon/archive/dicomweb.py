"""The archive's DICOMweb service (PS3.18): address, TLS, bearer token, and the loop over instances."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from config.settings import Archive
from daemon.errors import ArchiveError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*")
# A change of settings or a little time may cure these, at either end; any other 4xx is about this instance.
PASSING = frozenset({401, 403, 404, 405, 407, 408, 421, 423, 425, 429})


# After this many transport faults in a row, the rest is to be retried.
MAX_FAULTS = 2

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class WebService:
    """A DICOMweb service."""

    url: str  # its root, or its /studies
    named: str  # the setting that holds the URL
    timeout_s: float
    tls: ssl.SSLContext
    token: str | None = None  # bearer token (RFC 6750)

    @property
    def where(self) -> SplitResult:
        """The parts of the URL."""
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        """The host of the URL, "" if it has none."""
        return self.where.hostname or ""

    def connection(self, timeout_s: float | None = None) -> HTTPConnection:
        """Return a connection, opened by its first request and by the first request after `close`."""
        limit_s, where = timeout_s or self.timeout_s, self.where
        # http.client sets TCP_NODELAY by itself.
        if where.scheme == "https":
            return HTTPSConnection(self.host, where.port, timeout=limit_s, context=self.tls)
        return HTTPConnection(self.host, where.port, timeout=limit_s)

    def target(self, resource: str, query: str = "") -> str:
        """Return the request target of `resource` ("/studies"), with `query` and the query of the URL."""
        asked = "&".join(filter(None, (query, self.where.query)))
        path = self.where.path.rstrip("/").removesuffix("/studies") + resource
        return f"{path}?{asked}" if asked else path

    def headers(self, accept: str) -> dict[str, str]:
        """Return the headers of every request."""
        return {"Accept": accept} | ({} if self.token is None else {"Authorization": f"Bearer {self.token}"})

    def fault(self, error: Exception) -> str:
        """Return `error` in words: which host, and which setting to check."""
        what = str(error) if isinstance(error, ArchiveError) else type(error).__name__
        return f"archive at {self.host}: {what}; check {self.named}"

    def connect(self) -> None:
        """Open a connection, and close it.

        Raises:
            ArchiveError: the connection is refused, or TLS fails.
        """
        try:
            with closing(self.connection()) as connection:
                connection.connect()
        except OSError as error:
            raise ArchiveError(
                f"archive at {self.host} cannot be reached ({error.strerror or error}); check {self.named}"
            ) from error


def request_each(
    service: WebService,
    connection: HTTPConnection,
    items: Iterable[Item],
    request: Callable[[Item], Outcome],
    retry: Callable[[Item, str], Outcome],
) -> Iterator[Outcome]:
    """Call `request` for each item on one connection; yield its outcomes in order.

    After a transport fault the outcome is `retry(item, reason)`, and the next item is sent on a new
    connection. After `MAX_FAULTS` in a row, the rest is to be retried.
    """
    faults, reason = 0, ""
    for item in items:
        if faults == MAX_FAULTS:
            yield retry(item, reason)
            continue
        try:
            outcome = request(item)
            faults = 0
        except (OSError, HTTPException, ArchiveError) as error:
            connection.close()  # http.client opens it again for the next
            faults += 1
            reason = service.fault(error)
            outcome = retry(item, reason)
        yield outcome


def storing_service(settings: Archive) -> tuple[str, str]:
    """Return the setting that names the DICOMweb service to which reports are sent, and its URL.

    Raises:
        ArchiveError: it is not set.
    """
    if settings.stow_url is None:
        raise ArchiveError("no DICOMweb service is set; set archive.stow_url")
    return "archive.stow_url", settings.stow_url


def retrieval_service(settings: Archive) -> tuple[str, str]:
    """Return the setting that names the DICOMweb service for images, and its URL; default: that for reports.

    Raises:
        ArchiveError: neither is set.
    """
    if settings.dicomweb_url:
        return "archive.dicomweb_url", settings.dicomweb_url
    if settings.stow_url:
        return "archive.stow_url", settings.stow_url
    raise ArchiveError("no DICOMweb service is set; set archive.dicomweb_url")


def read_token(file: Path | None, url: str, named: str) -> str | None:
    """Return the bearer token in `file` (RFC 6750 2.1) for the `url` of the setting `named`.

    Returns None without a file. No message quotes the token.

    Raises:
        ArchiveError: the file cannot be read or holds no token, or `url` would carry it in clear text.
    """
    if file is None:
        return None
    where = urlsplit(url)
    if where.scheme != "https" and where.hostname not in LOOPBACK:
        raise ArchiveError(
            f"archive.dicomweb_token_file: a token is not sent in clear; {named} must begin with https://"
        )
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(
            f"archive.dicomweb_token_file = {str(file)!r} cannot be read: {type(error).__name__}"
        ) from error
    if not _TOKEN.fullmatch(token):
        raise ArchiveError(
            f"archive.dicomweb_token_file = {str(file)!r} holds no bearer token; expected one word (RFC 6750)"
        )
    return token
