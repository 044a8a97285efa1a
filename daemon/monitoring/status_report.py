"""Report the service's status to an operator, from ledger, archive and bundle, without patient data."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from config.settings import Settings
from config.settings import Status as StatusSettings
from daemon.archive.client import Archive
from daemon.errors import ArchiveError
from daemon.ledger import Ledger, instances, jobs, nodes, outbox, retention
from daemon.system.tls import expiries
from model.bundle import Bundle

LIVE_TIMEOUT_S = 5
RESEARCH_USE = "research software, not a medical device"


def collect(
    ledger: Ledger, archive: Archive, bundle: Bundle | None, live: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the status as one JSON-ready mapping.

    It holds instances received, jobs and reports by state, spool bytes, nodes, archive and bundle.
    `live` is what only the running service knows (rejected callers), None if it is not running.
    """
    with ledger.read() as connection:
        reports = outbox.by_state(connection)
        state: dict[str, Any] = {
            "received": instances.received(connection),
            "jobs": jobs.by_state(connection),
            "reports_stored": reports["stored"],
            "reports": reports,
            "spool_bytes": retention.spool_bytes(connection),
            "nodes": [
                {
                    "host": row.host,
                    "address": row.address,
                    "pid": row.pid,
                    "version": row.version,
                    "bundle": row.bundle,
                    "alive": bool(row.alive),
                    "silent_s": round(row.silent_s, 1),
                }
                for row in nodes.all(connection)
            ],
        }
    unreachable = _why_unreachable(archive)
    state["archive_reachable"] = unreachable is None
    if unreachable:
        state["archive_problem"] = unreachable
    state["bundle"] = bundle and {
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "trained": bundle.manifest.trained,
    }
    state["running"] = live is not None
    state |= live or {"rejected": None}
    state["note"] = RESEARCH_USE
    return state


def summary_line(ledger: Ledger) -> str:
    """Return what is unfinished as one line for `systemctl status`."""
    try:
        with ledger.read() as connection:
            counted, queued = jobs.by_state(connection), outbox.by_state(connection)["queued"]
    except SQLAlchemyError as error:
        return f"the ledger does not answer ({type(error).__name__})"
    in_progress = counted["ready"] + counted["running"]
    unusable = counted["quarantined"] + counted["failed"]
    return (
        f"jobs: {counted['waiting']} waiting for images, {in_progress} in progress, {unusable} quarantined or failed; "
        f"{queued} reports to send"
    )


def certificates(settings: Settings) -> list[dict[str, Any]]:
    """Return when each certificate in the settings expires, in days from now."""
    now = datetime.now(UTC)
    return [
        {"setting": expiry.setting, "ends": expiry.ends.isoformat(), "days_left": round(expiry.days_left(now), 1)}
        for expiry in expiries(settings)
    ]


def live(settings: StatusSettings) -> dict[str, Any] | None:
    """Return the running service's answer to /live, or None if no service answers on its status port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    try:
        with closing(HTTPConnection(host, settings.port, timeout=LIVE_TIMEOUT_S)) as connection:
            connection.request("GET", "/live")
            answer = json.loads(connection.getresponse().read(1 << 20))
    except (OSError, HTTPException, ValueError):
        return None
    return answer if isinstance(answer, dict) and "rejected" in answer else None


def _why_unreachable(archive: Archive) -> str | None:
    try:
        archive.echo()
    except ArchiveError as error:
        return str(error)
    return None
