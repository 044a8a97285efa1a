"""Nodes in the ledger: the service processes that share it, each alive while its heartbeats keep its lease.

All times of this table are by the database's clock, so that the nodes' own clocks need not agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, cast, delete, extract, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from daemon.ledger import job_claims
from daemon.ledger.records import NodeFacts, NodeRecord, records
from daemon.ledger.schema import duties, nodes, outbox


@dataclass(frozen=True)
class TakenOver:
    """How much was taken over from nodes that are gone."""

    nodes: int = 0
    jobs: int = 0  # that were running
    given_up: int = 0  # of these, quarantined after too many attempts
    reports: int = 0  # that were being sent or asked about


def clock(connection: Connection) -> ColumnElement[float]:
    """Return seconds since the epoch by the database's clock, as an expression of a query."""
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return (func.julianday("now") - 2_440_587.5) * 86_400.0


def _alive(connection: Connection) -> ColumnElement[bool]:
    """Return the condition that a node's lease has not expired.

    The last heartbeat is neither too old nor, after the database's clock was set back, too far ahead.
    """
    return func.abs(clock(connection) - nodes.c.beat_at) <= nodes.c.lease_s


def join(connection: Connection, node_id: str, facts: NodeFacts) -> None:
    """Add a node, which may own rows from then on."""
    now = clock(connection)
    connection.execute(insert(nodes).values(id=node_id, **vars(facts), started_at=now, beat_at=now))


def beat(connection: Connection, node_id: str) -> bool:
    """Record a heartbeat; return False if the node's lease expired meanwhile, so that it has to rejoin."""
    beaten = update(nodes).where(nodes.c.id == node_id).values(beat_at=clock(connection))
    return bool(connection.execute(beaten).rowcount)


def is_joined(connection: Connection, node_id: str) -> bool:
    """Return whether a node may claim work: no other node has removed it."""
    return connection.execute(select(nodes.c.id).where(nodes.c.id == node_id)).one_or_none() is not None


def ids(connection: Connection) -> set[str]:
    """Return the ids of all nodes."""
    return set(connection.execute(select(nodes.c.id)).scalars())


def all(connection: Connection) -> list[NodeRecord]:
    """Return every node, the oldest first."""
    silent = (clock(connection) - nodes.c.beat_at).label("silent_s")
    query = select(nodes, silent, _alive(connection).label("alive")).order_by(nodes.c.started_at, nodes.c.id)
    return records(NodeRecord, connection.execute(query))


def expired(connection: Connection) -> list[str]:
    """Return the ids of nodes whose lease expired."""
    return list(connection.execute(select(nodes.c.id).where(~_alive(connection))).scalars())


def take_over(connection: Connection, gone: Iterable[str], now: float, by: str | None = None) -> TakenOver:
    """Remove the nodes `gone` and those whose lease expired, except `by` itself; release what they owned.

    The attempts at their jobs count, as they do when a service dies over a job.
    """
    removed = delete(nodes).where(nodes.c.id.in_(list(gone)) | ~_alive(connection), nodes.c.id != (by or ""))
    number = connection.execute(removed).rowcount
    given_up, again = job_claims.release_orphans(connection, now)
    reports = connection.execute(update(outbox).where(_is_orphan(outbox.c.owner)).values(owner=None)).rowcount
    connection.execute(delete(duties).where(_is_orphan(duties.c.owner)))
    return TakenOver(number, again + given_up, given_up, reports)


def _is_orphan(owner: ColumnElement[Any]) -> ColumnElement[bool]:
    return owner.is_not(None) & owner.not_in(select(nodes.c.id))


def leave(connection: Connection, node_id: str, now: float) -> None:
    """Remove a node that stops; its work is free at once, as if never begun."""
    job_claims.return_to_ready(connection, node_id, None, now)
    connection.execute(update(outbox).where(outbox.c.owner == node_id).values(owner=None))
    connection.execute(delete(duties).where(duties.c.owner == node_id))
    connection.execute(delete(nodes).where(nodes.c.id == node_id))


def take_duty(connection: Connection, node_id: str, name: str) -> bool:
    """Take a duty that one node does at a time, until `end_duty` or until its lease expires.

    Returns whether it is had.
    """
    if not is_joined(connection, node_id):
        return False
    new: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(new(duties).values(name=name, owner=node_id).on_conflict_do_nothing())
    return connection.execute(select(duties.c.owner).where(duties.c.name == name)).scalar_one() == node_id


def end_duty(connection: Connection, node_id: str, name: str) -> None:
    """Give a duty back."""
    connection.execute(delete(duties).where(duties.c.name == name, duties.c.owner == node_id))
