"""What an operator is told of the service: read from ledger, archive and bundle, without patient data."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from daemon.archive import Archive
from daemon.errors import ArchiveError
from daemon.ledger import Ledger, instances, jobs, outbox
from daemon.ledger.schema import instances as instance_table
from daemon.ledger.schema import outbox as outbox_table
from model.bundle import Bundle

RESEARCH_USE = "research software, not a medical device"


def collect(ledger: Ledger, archive: Archive, bundle: Bundle | None) -> dict[str, Any]:
    """The status as one JSON-ready mapping: received, jobs by state, reports, spool bytes, archive reachable, bundle."""
    with ledger.read() as connection:
        spool_bytes = sum(
            connection.execute(select(func.coalesce(func.sum(table.c.size), 0))).scalar_one()
            for table in (instance_table, outbox_table)
        )
        reports = outbox.by_state(connection)
        state: dict[str, Any] = {
            "received": instances.received(connection),
            "jobs": jobs.by_state(connection),
            "reports_stored": reports["stored"],
            "reports": reports,
            "spool_bytes": spool_bytes,
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
    state["note"] = RESEARCH_USE
    return state


def _why_unreachable(archive: Archive) -> str | None:
    try:
        archive.echo()
    except ArchiveError as error:
        return str(error)
    return None
