"""The ledger's database where several nodes share it: which server that is, what it promises, and who else is there."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.engine import make_url

from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.ledger import Ledger, nodes
from daemon.ledger.database import POOL_OVERFLOW, POOL_SIZE

# A committed row survives a power cut only with both.
DURABLE = ("fsync", "synchronous_commit")


def node_findings(settings: Settings, ledger: Ledger) -> Iterator[Finding]:
    """Nothing about SQLite, which is one node's own."""
    url = make_url(settings.ledger_url)
    if url.get_backend_name() == "sqlite":
        return
    with ledger.read() as connection:
        shown = {
            name: connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("server_version", "max_connections", *DURABLE)
        }
        known = nodes.all(connection)
    yield Finding("database", True, f"PostgreSQL {shown['server_version']} answers, schema of this version")
    if lax := [name for name in DURABLE if shown[name] == "off"]:
        yield Finding(
            "database",
            False,
            f"{' and '.join(lax)} = off: a power cut may lose what senders were told is here; set it to on in PostgreSQL",
        )
    connections = POOL_SIZE + POOL_OVERFLOW
    if int(shown["max_connections"]) < connections * (len(known) + 1):
        yield Finding(
            "database",
            True,
            f"max_connections = {shown['max_connections']}, and {len(known) + 1} nodes may want {connections} each; raise it",
            warning=True,
        )
    if url.password is not None:
        yield Finding(
            "database",
            True,
            "ledger.url holds the password; put it into a file that ledger.password_file names",
            warning=True,
        )
    silent = [row for row in known if not row.alive]
    alive = ", ".join(f"{row.host} {row.address}" for row in known if row.alive) or "none"
    yield Finding("nodes", True, f"alive: {alive}" + (f"; silent, to be taken over: {len(silent)}" if silent else ""))
