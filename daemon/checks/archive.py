"""Check that the archive accepts our requests: C-ECHO, SOP classes of reports, DICOMweb with our token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

from pynetdicom.presentation import build_context

from config.errors import MammodError
from config.loading import require_archive
from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.dicomweb import WebService, read_token
from daemon.checks.connectivity import why_not
from daemon.checks.finding import Finding
from daemon.errors import ArchiveError
from daemon.reports.registry import KIND_CLASSES
from daemon.system import tls
from daemon.system.tls import Credentials, Side

MAX_TIMEOUT_S = 10.0  # a person is waiting
UNUSED_UID = "2.25.0"  # no instance has it, so a search for it returns no patient data
MAX_CLOCK_OFFSET_S = 60


def archive_findings(settings: Settings) -> Iterator[Finding]:
    """Try each protocol that the settings configure for the archive."""
    try:
        require_archive(settings)
    except MammodError as error:
        yield Finding("archive", False, str(error))
        return
    archive = settings.archive.model_copy(update={"timeout_s": min(settings.archive.timeout_s, MAX_TIMEOUT_S)})
    if archive.stow_url is not None:
        yield from _web(archive, "archive.stow_url", archive.stow_url, "reports are stored there by STOW-RS")
    if archive.host is not None:
        yield from _dicom(archive.model_copy(update={"stow_url": None}), settings)
    if archive.dicomweb_url is not None:
        yield from _web(
            archive, "archive.dicomweb_url", archive.dicomweb_url, "images are fetched from there by WADO-RS"
        )


def why_unreachable(archive: ArchiveSettings) -> str | None:
    """Return what is wrong below DICOM (host name, port or TLS), or None if nothing is."""
    assert archive.host is not None
    try:
        context = Credentials(archive.tls, "archive.tls", Side.CALL).context() if archive.tls else None
    except MammodError as error:
        return str(error)
    return why_not(archive.host, archive.port, context, archive.timeout_s, "archive")


def _dicom(archive: ArchiveSettings, settings: Settings) -> Iterator[Finding]:
    where = f"{archive.ae_title} at {archive.host}:{archive.port}"
    try:
        node = Archive(archive, settings.listener.ae_title, settings.spool.directory / "incoming")
        node.echo()
    except MammodError as error:
        reason = why_unreachable(archive)
        yield Finding("archive", False, f"{where}: {reason}" if reason else str(error))
        return
    yield Finding("archive", True, f"{where} answers C-ECHO")
    if archive.stow_url is None and settings.archive.stow_url is None:
        yield from _classes(node, settings, where)


def _classes(node: Archive, settings: Settings, where: str) -> Iterator[Finding]:
    """Report the SOP classes of our reports that the archive rejects in negotiation; send nothing."""
    wanted = {KIND_CLASSES[kind]: kind for kind in settings.reports.kinds}
    try:
        with node.associate([build_context(sop_class) for sop_class in wanted]) as association:
            refused = {str(context.abstract_syntax) for context in association.rejected_contexts}
    except ArchiveError as error:
        yield Finding("archive", False, f"{where} answers C-ECHO and accepts none of our reports: {error}")
        return
    for sop_class in refused:
        yield Finding(
            "archive",
            False,
            f'{where} does not accept reports of the kind "{wanted[sop_class]}" (SOP class {sop_class}); allow it there, '
            "or remove the kind from [reports] kinds",
        )


def _web(archive: ArchiveSettings, named: str, url: str, purpose: str) -> Iterator[Finding]:
    where = urlsplit(url)  # the rest of the URL may contain a secret
    host, port = where.hostname or "", where.port or (443 if where.scheme == "https" else 80)
    short = f"{where.scheme}://{host}:{port}"
    if where.scheme not in ("http", "https") or not host:
        yield Finding(
            "archive", False, f"{named} is not a URL; expected for example https://pacs.example.org/dicom-web"
        )
        return
    try:
        token = read_token(archive.dicomweb_token_file, url, named)
        context = (
            Credentials(archive.tls, "archive.tls", Side.CALL_HOST).context() if archive.tls else tls.public_context()
        )
    except MammodError as error:
        yield Finding("archive", False, str(error))
        return
    if reason := why_not(host, port, context if where.scheme == "https" else None, archive.timeout_s, "archive"):
        yield Finding("archive", False, f"{named}: {short}: {reason}")
        return
    yield from _search(WebService(url, named, archive.timeout_s, context, token), short, purpose)


def _search(service: WebService, short: str, purpose: str) -> Iterator[Finding]:
    """Search for an instance that does not exist: the answer shows whether path and token are right."""
    named = service.named
    try:
        with closing(service.connection()) as connection:
            target = service.target("/instances", f"SOPInstanceUID={UNUSED_UID}&limit=1")
            connection.request("GET", target, headers=service.headers("application/dicom+json"))
            answer = connection.getresponse()
            answer.read(1 << 16)
    except (OSError, HTTPException) as error:
        yield Finding(
            "archive",
            False,
            f"{named}: {short} closed the connection during the request ({type(error).__name__}); see its log",
        )
        return
    status = answer.status
    if status in (200, 204):
        yield Finding("archive", True, f"{named}: {short} answers; {purpose}")
    elif status == 401:
        credentials = (
            "the token of archive.dicomweb_token_file"
            if service.token
            else "no token (archive.dicomweb_token_file is not set)"
        )
        yield Finding(
            "archive", False, f"{named}: {short} rejected our credentials (HTTP 401): {credentials}; renew the token"
        )
    elif status == 403:
        yield Finding("archive", False, f"{named}: {short} denied access (HTTP 403); allow our user there")
    elif named == "archive.stow_url" and status in (400, 404, 405, 501):
        # A service that only stores need not support searches.
        yield Finding(
            "archive", True, f"{named}: {short} answers but does not support searches (HTTP {status}), so the path "
            f"is only tested by the first report; {purpose}", warning=True,
        )  # fmt: skip
    elif status in (404, 405):
        yield Finding(
            "archive",
            False,
            f"{named}: {short} has no DICOMweb at that path (HTTP {status}); check the path, for example /dicom-web",
        )
    else:
        yield Finding("archive", False, f"{named}: {short} answers HTTP {status}; see its log")
    yield from _clocks(answer, short)


def _clocks(answer: HTTPResponse, short: str) -> Iterator[Finding]:
    with suppress(TypeError, ValueError):
        offset = (parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC)).total_seconds()
        if abs(offset) > MAX_CLOCK_OFFSET_S:
            yield Finding(
                "clock", True, f"the clock of {short} is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} this "
                "machine's; synchronise both by NTP", warning=True,
            )  # fmt: skip
