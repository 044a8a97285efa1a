"""Nodes in the ledger: the service processes that share it, each alive as long as it gives a sign of life within its lease.

All times of this table are the database's clock, so that the nodes' own clocks need not agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Row, cast, delete, extract, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from daemon.ledger import job_claims
from daemon.ledger.schema import duties, nodes, outbox


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself; `process` names the process on its machine (see `daemon.system.process_identity`)."""

    host: str
    pid: int
    process: str
    address: str
    bundle: str
    version: str
    lease_s: float


@dataclass(frozen=True)
class TakenOver:
    """What was given back: nodes that are gone, running jobs (`given_up` of them quarantined), reports under way."""

    nodes: int = 0
    jobs: int = 0
    given_up: int = 0
    reports: int = 0


def clock(connection: Connection) -> ColumnElement[float]:
    """Seconds since the epoch by the database's clock, while the transaction runs."""
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return (func.julianday("now") - 2_440_587.5) * 86_400.0


def _alive(connection: Connection) -> ColumnElement[bool]:
    """Neither too old nor, where the database's clock was set back since, from the future."""
    return func.abs(clock(connection) - nodes.c.beat_at) <= nodes.c.lease_s


def join(connection: Connection, node_id: str, facts: NodeFacts) -> None:
    """From here on this node may own rows."""
    now = clock(connection)
    connection.execute(insert(nodes).values(id=node_id, **vars(facts), started_at=now, beat_at=now))


def beat(connection: Connection, node_id: str) -> bool:
    """A sign of life; False where the node was taken for dead meanwhile and has to join anew."""
    beaten = update(nodes).where(nodes.c.id == node_id).values(beat_at=clock(connection))
    return bool(connection.execute(beaten).rowcount)


def lives(connection: Connection, node_id: str) -> bool:
    """Whether a node may claim work: nobody took it for dead."""
    return connection.execute(select(nodes.c.id).where(nodes.c.id == node_id)).one_or_none() is not None


def ids(connection: Connection) -> set[str]:
    return set(connection.execute(select(nodes.c.id)).scalars())


def all(connection: Connection) -> Sequence[Row]:
    """Every node, the oldest first, with `alive` and `silent_s`, the seconds since its last sign of life."""
    silent = (clock(connection) - nodes.c.beat_at).label("silent_s")
    return connection.execute(
        select(nodes, silent, _alive(connection).label("alive")).order_by(nodes.c.started_at, nodes.c.id)
    ).all()


def silent(connection: Connection) -> list[str]:
    """The nodes whose lease ran out."""
    return list(connection.execute(select(nodes.c.id).where(~_alive(connection))).scalars())


def take_over(connection: Connection, gone: Iterable[str], now: float, by: str | None = None) -> TakenOver:
    """Remove the nodes `gone` and those whose lease ran out, but for `by` itself, and give back what belongs to no node.

    An attempt at a job counts as begun, as it does when a service dies over it.
    """
    removed = delete(nodes).where(nodes.c.id.in_(list(gone)) | ~_alive(connection), nodes.c.id != (by or ""))
    number = connection.execute(removed).rowcount
    given_up, again = job_claims.give_back_orphans(connection, now)
    reports = connection.execute(update(outbox).where(_orphaned(outbox.c.owner)).values(owner=None)).rowcount
    connection.execute(delete(duties).where(_orphaned(duties.c.owner)))
    return TakenOver(number, again + given_up, given_up, reports)


def _orphaned(owner: ColumnElement[Any]) -> ColumnElement[bool]:
    return owner.is_not(None) & owner.not_in(select(nodes.c.id))


def leave(connection: Connection, node_id: str, now: float) -> None:
    """The node stops: what it has begun is free at once, as if never begun."""
    job_claims.return_to_ready(connection, node_id, None, now)
    connection.execute(update(outbox).where(outbox.c.owner == node_id).values(owner=None))
    connection.execute(delete(duties).where(duties.c.owner == node_id))
    connection.execute(delete(nodes).where(nodes.c.id == node_id))


def take_duty(connection: Connection, node_id: str, name: str) -> bool:
    """Whether this node has the duty from here on; it does what it stands for alone until `end_duty`, or until it is dead."""
    if not lives(connection, node_id):
        return False
    new: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(new(duties).values(name=name, owner=node_id).on_conflict_do_nothing())
    return connection.execute(select(duties.c.owner).where(duties.c.name == name)).scalar_one() == node_id


def end_duty(connection: Connection, node_id: str, name: str) -> None:
    connection.execute(delete(duties).where(duties.c.name == name, duties.c.owner == node_id))
