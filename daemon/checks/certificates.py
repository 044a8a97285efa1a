"""Check the files of every TLS setting: readable, matching, private, and valid today."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime

from config.errors import MammodError
from config.settings import TLS, Settings
from daemon.checks.finding import Finding
from daemon.system.tls import WARN_DAYS, Credentials, Side, expiries


def certificate_findings(settings: Settings) -> Iterator[Finding]:
    """Check certificate, key and CA of listener, archive and audit."""
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
        soon = 0 <= days < WARN_DAYS
        when = f"expires on {expiry.ends:%Y-%m-%d}" if days >= 0 else f"expired on {expiry.ends:%Y-%m-%d}: replace it"
        yield Finding(
            expiry.setting,
            days >= 0,
            f"{expiry.file} {when}{f', in {days:.0f} days: replace it' if soon else ''}",
            warning=soon,
        )


def _credentials(name: str, tls: TLS, side: Side) -> Iterator[Finding]:
    try:
        Credentials(tls, name, side)
    except MammodError as error:
        yield Finding(name, False, str(error))
        return
    if tls.key.stat().st_mode & stat.S_IROTH:
        yield Finding(f"{name}.key", False, f"{tls.key} is readable by every user of this machine; run chmod o-r on it")
