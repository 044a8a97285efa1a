"""Instances in the ledger: each content is recorded once.

The newest of a SOP Instance UID is the current one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, bindparam, delete, exists, func, insert, select, update

from daemon.events.outcomes import Arrival
from daemon.ledger.records import Instance, records
from daemon.ledger.schema import UNFINISHED, InstanceState, instances, jobs, needs


@dataclass(frozen=True)
class StoredInstance:
    """An instance in the spool that is to be recorded."""

    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    digest: str  # of its content: see `daemon.dicom.digest`
    size: int  # bytes of its file
    path: str  # of its file, relative to the spool directory
    calling_ae: str  # AE title of the sender
    received_at: float  # seconds since the epoch


def record(
    connection: Connection, instance: StoredInstance, is_same: Callable[[str, str], bool] = lambda digest, path: False
) -> tuple[Arrival, int]:
    """Record an accepted instance; return what its arrival was, and its row id.

    Content that was seen before is a duplicate, even if other content came in between: a late re-send of old
    content does not make it current again. `is_same` takes another digest and the path of its file, and
    returns whether that is the same content; the row then gets the new file.
    """
    uid = {"uid": instance.sop_instance_uid}
    known = connection.execute(_OF_UID, uid).all()
    for row in known:
        if row.digest == instance.digest or is_same(row.digest, row.path):
            connection.execute(
                update(instances)
                .where(instances.c.id == row.id)
                .values(times_received=instances.c.times_received + 1, path=instance.path, size=instance.size)
            )
            return Arrival.DUPLICATE, row.id
    replaced = any(row.state == InstanceState.CURRENT for row in known)
    if replaced:
        connection.execute(_SUPERSEDE, uid)
    values = {name: getattr(instance, name) for name in StoredInstance.__dataclass_fields__}
    instance_id = connection.execute(
        _INSERT, values | {"state": InstanceState.CURRENT, "times_received": 1}
    ).scalar_one()
    return (Arrival.CHANGED if replaced else Arrival.NEW), instance_id


# Built once: building each takes as long as executing it.
_SAME_UID = instances.c.sop_instance_uid == bindparam("uid")
_OF_UID = select(instances.c.id, instances.c.digest, instances.c.path, instances.c.state).where(_SAME_UID)
_SUPERSEDE = (
    update(instances)
    .where(_SAME_UID, instances.c.state == InstanceState.CURRENT)
    .values(state=InstanceState.SUPERSEDED)
)
_INSERT = insert(instances).returning(instances.c.id)


def current(connection: Connection, sop_instance_uids: Iterable[str]) -> dict[str, Instance]:
    """Return the current instance of each of these SOP Instance UIDs that is here."""
    rows = connection.execute(
        select(instances).where(
            instances.c.sop_instance_uid.in_(list(sop_instance_uids)), instances.c.state == InstanceState.CURRENT
        )
    )
    return {instance.sop_instance_uid: instance for instance in records(Instance, rows)}


def by_id(connection: Connection, instance_id: int) -> Instance:
    """Return the instance with this row id."""
    (instance,) = records(Instance, connection.execute(select(instances).where(instances.c.id == instance_id)))
    return instance


def every(connection: Connection) -> list[Instance]:
    """Return all instances, in every version."""
    return records(Instance, connection.execute(select(instances)))


def is_known(connection: Connection, instance_id: int) -> bool:
    """Return whether there is an instance with this row id."""
    return connection.execute(select(exists().where(instances.c.id == instance_id))).scalar_one()


def is_unneeded() -> ColumnElement[bool]:
    """Return the condition that no job, finished or not, is about an instance or needs it."""
    return ~exists().where(jobs.c.instance_id == instances.c.id) & ~exists().where(
        needs.c.sop_instance_uid == instances.c.sop_instance_uid
    )


def paths(connection: Connection) -> set[str]:
    """Return the spool paths that rows refer to.

    Any other instance file is an orphan of an interrupted arrival.
    """
    return set(connection.execute(select(instances.c.path)).scalars())


def known_paths(connection: Connection, some: Sequence[str]) -> set[str]:
    """Return those of these spool paths that rows refer to."""
    return set(connection.execute(select(instances.c.path).where(instances.c.path.in_(some))).scalars())


def received(connection: Connection) -> int:
    """Return how many instances were accepted, duplicates included."""
    return connection.execute(select(func.coalesce(func.sum(instances.c.times_received), 0))).scalar_one()


def delete_older_than(connection: Connection, before: float) -> list[str]:
    """Delete instances received before `before` that no job holds and no unfinished job needs.

    Returns their paths.
    """
    held = select(jobs.c.instance_id)
    needed = (
        select(needs.c.sop_instance_uid)
        .join(jobs, jobs.c.id == needs.c.job_id)
        .where(jobs.c.state.in_([str(state) for state in UNFINISHED]))
    )
    old = connection.execute(
        select(instances.c.id, instances.c.path).where(
            instances.c.received_at < before,
            instances.c.id.not_in(held),
            instances.c.sop_instance_uid.not_in(needed),
        )
    ).all()
    for start in range(0, len(old), 500):
        ids = [row.id for row in old[start : start + 500]]
        connection.execute(delete(instances).where(instances.c.id.in_(ids)))
    return [row.path for row in old]
