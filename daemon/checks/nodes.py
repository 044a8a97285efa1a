"""Check a database that several nodes share: its version and durability, and the nodes that use it."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.engine import make_url

from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.ledger import Ledger, nodes
from daemon.ledger.database import POOL_OVERFLOW, POOL_SIZE

# A committed row survives a power failure only if both are on.
DURABLE = ("fsync", "synchronous_commit")


def node_findings(settings: Settings, ledger: Ledger) -> Iterator[Finding]:
    """Check the PostgreSQL server and list the nodes; yield nothing for SQLite, which belongs to one node."""
    url = make_url(settings.ledger_url)
    if url.get_backend_name() == "sqlite":
        return
    with ledger.read() as connection:
        parameters = {
            name: connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("server_version", "max_connections", *DURABLE)
        }
        known = nodes.all(connection)
    yield Finding(
        "database", True, f"PostgreSQL {parameters['server_version']} answers and has the schema of this version"
    )
    if unsafe := [name for name in DURABLE if parameters[name] == "off"]:
        yield Finding(
            "database",
            False,
            f"{' and '.join(unsafe)} = off: a power failure may lose accepted instances; set it to on in PostgreSQL",
        )
    connections = POOL_SIZE + POOL_OVERFLOW
    if int(parameters["max_connections"]) < connections * (len(known) + 1):
        yield Finding(
            "database",
            True,
            f"max_connections is {parameters['max_connections']}; {len(known) + 1} nodes may need {connections} each: raise it",
            warning=True,
        )
    if url.password is not None:
        yield Finding(
            "database",
            True,
            "ledger.url contains the password; move it to a file and name that in ledger.password_file",
            warning=True,
        )
    silent = [row for row in known if not row.alive]
    alive = ", ".join(f"{row.host} {row.address}" for row in known if row.alive) or "none"
    yield Finding("nodes", True, f"alive: {alive}" + (f"; lease expired: {len(silent)}" if silent else ""))
