"""The archive's DICOMweb service (PS3.18) as we call it: address, TLS and bearer token, shared by storing and retrieving."""

from __future__ import annotations

import re
import ssl
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from config.settings import Archive
from daemon.errors import ArchiveError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*")
# What a change of setting or a little time may cure, at either end; anything else of 4xx is about this instance.
PASSING = frozenset({401, 403, 404, 405, 407, 408, 421, 423, 425, 429})


@dataclass(frozen=True)
class WebService:
    """A DICOMweb service at `url` (its root, or its /studies), which the setting `named` gives; `token`: RFC 6750."""

    url: str
    named: str
    timeout_s: float
    tls: ssl.SSLContext
    token: str | None = None

    @property
    def where(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def host(self) -> str:
        return self.where.hostname or ""

    def connection(self, timeout_s: float | None = None) -> HTTPConnection:
        """One that is opened by its first request, and again by the first after `close`."""
        limit_s, where = timeout_s or self.timeout_s, self.where
        # http.client sets TCP_NODELAY by itself.
        if where.scheme == "https":
            return HTTPSConnection(self.host, where.port, timeout=limit_s, context=self.tls)
        return HTTPConnection(self.host, where.port, timeout=limit_s)

    def target(self, resource: str, query: str = "") -> str:
        """The request target of `resource` ("/studies"), with `query` and what the URL itself asks for."""
        asked = "&".join(filter(None, (query, self.where.query)))
        path = self.where.path.rstrip("/").removesuffix("/studies") + resource
        return f"{path}?{asked}" if asked else path

    def headers(self, accept: str) -> dict[str, str]:
        """Those of every request."""
        return {"Accept": accept} | ({} if self.token is None else {"Authorization": f"Bearer {self.token}"})

    def connect(self) -> None:
        """Open a connection, and close it.

        Raises:
            ArchiveError: nobody takes it, or TLS fails.
        """
        try:
            with closing(self.connection()) as connection:
                connection.connect()
        except OSError as error:
            raise ArchiveError(
                f"archive at {self.host} cannot be reached ({error.strerror or error}); check {self.named}"
            ) from error


def retrieval_service(settings: Archive) -> tuple[str, str]:
    """The setting that says where images are fetched by DICOMweb, and its URL: without one of its own, where reports go.

    Raises:
        ArchiveError: neither is set.
    """
    if settings.dicomweb_url:
        return "archive.dicomweb_url", settings.dicomweb_url
    if settings.stow_url:
        return "archive.stow_url", settings.stow_url
    raise ArchiveError("no DICOMweb service is set; set archive.dicomweb_url")


def read_token(file: Path | None, url: str, named: str) -> str | None:
    """The bearer token in `file` (RFC 6750 2.1) for the `url` of the setting `named`; None without a file. No message quotes it.

    Raises:
        ArchiveError: the file cannot be read or holds no token, or `url` would carry it in clear.
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
