"""Whether the archive takes our calls: C-ECHO, the classes of our reports, and its DICOMweb service with our token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

from pynetdicom.presentation import build_context

from config.errors import MammodError
from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.dicomweb import WebService, read_token
from daemon.checks.connectivity import why_not
from daemon.checks.finding import Finding
from daemon.errors import ArchiveError
from daemon.reports.registry import KIND_CLASSES
from daemon.service import require_archive
from daemon.system import tls
from daemon.system.tls import Credentials, Side

LIMIT_S = 10.0  # a person waits for the answer
NOBODY = "2.25.0"  # a UID that no instance has: a search for it brings nothing of any patient
CLOCKS_APART_S = 60


def archive_findings(settings: Settings) -> Iterator[Finding]:
    """Each way to the archive that the settings name is tried."""
    try:
        require_archive(settings)
    except MammodError as error:
        yield Finding("archive", False, str(error))
        return
    archive = settings.archive.model_copy(update={"timeout_s": min(settings.archive.timeout_s, LIMIT_S)})
    if archive.stow_url is not None:
        yield from _web(archive, "archive.stow_url", archive.stow_url, "reports go there by STOW-RS")
    if archive.host is not None:
        yield from _dicom(archive.model_copy(update={"stow_url": None}), settings)
    if archive.dicomweb_url is not None:
        yield from _web(archive, "archive.dicomweb_url", archive.dicomweb_url, "images are fetched there by WADO-RS")


def why_unreachable(archive: ArchiveSettings) -> str | None:
    """What is wrong below DICOM: name, port or TLS; None where that is not it."""
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
    """Whether it would take our reports: it says so for each class when an association is asked for, before anything is sent."""
    wanted = {KIND_CLASSES[kind]: kind for kind in settings.reports.kinds}
    try:
        with node.associate([build_context(sop_class) for sop_class in wanted]) as association:
            refused = {str(context.abstract_syntax) for context in association.rejected_contexts}
    except ArchiveError as error:
        yield Finding("archive", False, f"{where} answers C-ECHO and takes none of our reports: {error}")
        return
    for sop_class in refused:
        yield Finding(
            "archive",
            False,
            f'{where} does not take reports of the kind "{wanted[sop_class]}" (SOP class {sop_class}); have it allowed there, '
            "or take the kind out of [reports] kinds",
        )


def _web(archive: ArchiveSettings, named: str, url: str, purpose: str) -> Iterator[Finding]:
    where = urlsplit(url)  # the rest of the URL may hold a secret
    host, port = where.hostname or "", where.port or (443 if where.scheme == "https" else 80)
    short = f"{where.scheme}://{host}:{port}"
    if where.scheme not in ("http", "https") or not host:
        yield Finding("archive", False, f"{named} is no URL; write such as https://pacs.example.org/dicom-web")
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
    yield from _asked(WebService(url, named, archive.timeout_s, context, token), short, purpose)


def _asked(service: WebService, short: str, purpose: str) -> Iterator[Finding]:
    """Ask for an instance that nobody has: the answer says whether path and token are right."""
    named = service.named
    try:
        with closing(service.connection()) as connection:
            target = service.target("/instances", f"SOPInstanceUID={NOBODY}&limit=1")
            connection.request("GET", target, headers=service.headers("application/dicom+json"))
            answer = connection.getresponse()
            answer.read(1 << 16)
    except (OSError, HTTPException) as error:
        yield Finding("archive", False, f"{named}: {short} broke the request off ({type(error).__name__}); see its log")
        return
    status = answer.status
    if status in (200, 204):
        yield Finding("archive", True, f"{named}: {short} answers; {purpose}")
    elif status == 401:
        shown = (
            "the token of archive.dicomweb_token_file"
            if service.token
            else "no token (archive.dicomweb_token_file is not set)"
        )
        yield Finding(
            "archive", False, f"{named}: {short} lets us not in (HTTP 401); it was shown {shown}: get a new one"
        )
    elif status == 403:
        yield Finding(
            "archive", False, f"{named}: {short} knows us and forbids it (HTTP 403); have our user allowed there"
        )
    elif named == "archive.stow_url" and status in (400, 404, 405, 501):
        # A service that only stores need not search.
        yield Finding(
            "archive", True, f"{named}: {short} answers, and no searches (HTTP {status}): whether the path is right "
            f"shows with the first report; {purpose}", warning=True,
        )  # fmt: skip
    elif status in (404, 405):
        yield Finding(
            "archive", False, f"{named}: {short} has no DICOMweb at that path (HTTP {status}); such as /dicom-web"
        )
    else:
        yield Finding("archive", False, f"{named}: {short} answers HTTP {status}; see its log")
    yield from _clocks(answer, short)


def _clocks(answer: HTTPResponse, short: str) -> Iterator[Finding]:
    with suppress(TypeError, ValueError):
        apart = (parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC)).total_seconds()
        if abs(apart) > CLOCKS_APART_S:
            yield Finding(
                "clock", True, f"the clock of {short} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this "
                "machine's; let both be set by NTP", warning=True,
            )  # fmt: skip
