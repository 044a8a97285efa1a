"""`mammod check`: what would keep the service from working, each finding with what to do."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from sqlalchemy.engine import make_url

from config.errors import MammodError
from config.settings import TLS, Settings
from config.settings import Archive as ArchiveSettings
from daemon.archive import Archive
from daemon.deep_check import deep_check
from daemon.ledger import Ledger
from daemon.service import open_bundle, require_archive
from daemon.spool import Spool
from daemon.tls import WARN_DAYS, Credentials, Side, expiries


@dataclass(frozen=True)
class Finding:
    """One checked subject: `good`, or a `text` that says what is wrong and what to do."""

    subject: str
    good: bool
    text: str


def findings(settings: Settings, allow_untrained: bool) -> Iterator[Finding]:
    """Check everything the service needs; each finding as soon as it is known."""
    spool = _spool(settings)
    yield spool
    if spool.good:
        yield _ledger(settings)
    yield _bundle(settings, allow_untrained)
    yield _port("listener", settings.listener.host, settings.listener.port, "listener.port")
    yield _port("status port", settings.status.host, settings.status.port, "status.port")
    if not settings.listener.peers:
        yield Finding(
            "peers", True, "anyone may send here; list AE titles and networks in [[listener.peers]] to change that"
        )
    yield from _certificates(settings)
    yield from _archive(settings)
    yield from _decoders()


def deep_findings(settings: Settings) -> Iterator[Finding]:
    """Ledger and spool compared, whole. Nothing is made; a ledger of an earlier version is brought to this one's schema."""
    directory = settings.spool.directory
    if not directory.is_dir():
        yield Finding(
            "spool", False, f"there is no {directory}; is this the service's settings file, and did it ever start?"
        )
        return
    url = make_url(settings.ledger_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield Finding("ledger", False, f"there is no {url.database}; is this the service's settings file?")
        return
    try:
        ledger = Ledger(settings.ledger_url)
    except MammodError as error:
        yield Finding("ledger", False, str(error))
        return
    try:
        found = deep_check(ledger, Spool(directory))
    finally:
        ledger.close()
    for fault in found.faults:
        subject, _, what = fault.partition(": ")
        yield Finding(subject, False, what)
    yield Finding(
        "ledger and spool",
        not found.faults,
        f"{found.instances} instances, {found.reports} reports and {found.jobs} jobs looked at, "
        f"{found.bytes_hashed / 2**20:.1f} MiB hashed, {len(found.faults)} faults",
    )


def _spool(settings: Settings) -> Finding:
    directory = settings.spool.directory
    try:
        spool = Spool(directory, settings.spool.min_free)
        spool.check_room()
    except OSError as error:
        return Finding(
            "spool",
            False,
            f"{directory} cannot be used ({error.strerror}); create it for this user, or set spool.directory",
        )
    except MammodError as error:
        return Finding("spool", False, str(error))
    if not os.access(spool.incoming, os.W_OK):
        return Finding("spool", False, f"{directory} cannot be written by this user; run as the service's user")
    return Finding("spool", True, f"{directory}, {spool.free() // 2**30} GiB free")


def _ledger(settings: Settings) -> Finding:
    try:
        Ledger(settings.ledger_url).close()
    except MammodError as error:
        return Finding("ledger", False, str(error))
    return Finding("ledger", True, "opens, and its schema is this version's")


def _bundle(settings: Settings, allow_untrained: bool) -> Finding:
    try:
        bundle = open_bundle(settings, allow_untrained)
    except MammodError as error:
        return Finding("bundle", False, str(error))
    trained = "trained" if bundle.manifest.trained else "UNTRAINED: its numbers mean nothing"
    return Finding("bundle", True, f"{bundle.manifest.name} {bundle.manifest.version}, {trained}")


def _port(subject: str, host: str, port: int, key: str) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(subject, False, f"port {port} needs a privilege (below 1024); set {key} to 1024 or above")
        except OSError as error:
            return Finding(
                subject,
                False,
                f"{host}:{port} cannot be bound ({error.strerror}); is the service running already? else set {key}",
            )
    return Finding(subject, True, f"{host}:{port} is free")


def _certificates(settings: Settings) -> Iterator[Finding]:
    for name, tls, side in (
        ("listener.tls", settings.listener.tls, Side.ACCEPT),
        ("archive.tls", settings.archive.tls, Side.CALL),
        ("audit.tls", settings.audit.tls, Side.CALL),
    ):
        if tls is not None:
            yield from _credentials(name, tls, side)
    now = datetime.now(UTC)
    for expiry in expiries(settings):
        days = expiry.days_left(now)
        when = f"ends on {expiry.ends:%Y-%m-%d}" if days >= 0 else f"ended on {expiry.ends:%Y-%m-%d}: replace it"
        soon = f", in {days:.0f} days: replace it" if 0 <= days < WARN_DAYS else ""
        yield Finding(expiry.setting, days >= 0, f"{expiry.file} {when}{soon}")


def _credentials(name: str, tls: TLS, side: Side) -> Iterator[Finding]:
    try:
        Credentials(tls, name, side)
    except MammodError as error:
        yield Finding(name, False, str(error))
        return
    if tls.key.stat().st_mode & stat.S_IROTH:
        yield Finding(f"{name}.key", False, f"{tls.key} can be read by every user of this machine; chmod o-r it")


def _archive(settings: Settings) -> Iterator[Finding]:
    try:
        require_archive(settings)
    except MammodError as error:
        yield Finding("archive", False, str(error))
        return
    archive = settings.archive
    if archive.stow_url is not None:
        where = urlsplit(archive.stow_url)  # the rest of the URL may hold a secret
        yield _tried(
            archive, settings, f"{where.scheme}://{where.hostname} can be connected to; reports go there by STOW-RS"
        )
    if archive.host is not None:
        by_dicom = archive.model_copy(update={"stow_url": None})
        yield _tried(by_dicom, settings, f"{archive.ae_title} at {archive.host}:{archive.port} answers C-ECHO")


def _tried(archive: ArchiveSettings, settings: Settings, good: str) -> Finding:
    try:
        Archive(archive, settings.listener.ae_title, settings.spool.directory / "incoming").echo()
    except MammodError as error:
        return Finding("archive", False, str(error))
    return Finding("archive", True, good)


def _decoders() -> Iterator[Finding]:
    for syntax in (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless):
        available = get_decoder(syntax).is_available
        yield Finding(
            "decoder",
            available,
            syntax.name
            if available
            else f"{syntax.name}: no decoder is installed; install mammod's dependencies again",
        )
