"""What may leave the ledger before its days are over, oldest first: finished jobs, and instances that no job is about.

What is not finished never shows here: unfinished jobs, jobs with a report that still waits for the archive, and every
instance that one of these holds or needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Row, delete, exists, func, select

from daemon.ledger.schema import UNFINISHED, OutboxState, instances, jobs, needs, outbox


def spool_bytes(connection: Connection) -> int:
    """Bytes of all instances and reports."""
    return sum(
        int(connection.execute(select(func.coalesce(func.sum(table.c.size), 0))).scalar_one())  # PostgreSQL: a Decimal
        for table in (instances, outbox)
    )


def oldest_finished(connection: Connection, limit: int) -> Sequence[Row]:
    """(id, ended_at) of finished jobs all of whose reports have ended too, the one that ended first at the front."""
    waiting = exists().where(
        outbox.c.job_id == jobs.c.id, outbox.c.state.in_([OutboxState.QUEUED, OutboxState.COMMITTING])
    )
    return connection.execute(
        select(jobs.c.id, jobs.c.finished_at.label("ended_at"))
        .where(jobs.c.state.not_in([str(state) for state in UNFINISHED]), jobs.c.finished_at.is_not(None), ~waiting)
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def oldest_unmarked(connection: Connection, before: float, limit: int) -> Sequence[Row]:
    """(id, ended_at, path, size) of instances that came before `before` and that no job holds or needs, the first in front."""
    return connection.execute(
        select(instances.c.id, instances.c.received_at.label("ended_at"), instances.c.path, instances.c.size)
        .where(
            instances.c.received_at < before,
            ~exists().where(jobs.c.instance_id == instances.c.id),
            ~exists().where(needs.c.sop_instance_uid == instances.c.sop_instance_uid),
        )
        .order_by(instances.c.received_at, instances.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def delete_job(connection: Connection, job_id: int) -> tuple[list[Row], list[Row]]:
    """Remove a job, its reports, and the instances that only it was about; (path, size) of each report, of each instance."""
    reports = connection.execute(select(outbox.c.path, outbox.c.size).where(outbox.c.job_id == job_id)).all()
    connection.execute(delete(outbox).where(outbox.c.job_id == job_id))
    needed = list(connection.execute(select(needs.c.sop_instance_uid).where(needs.c.job_id == job_id)).scalars())
    held = connection.execute(select(jobs.c.instance_id).where(jobs.c.id == job_id)).scalar_one()
    connection.execute(delete(needs).where(needs.c.job_id == job_id))
    connection.execute(delete(jobs).where(jobs.c.id == job_id))
    left = connection.execute(
        select(instances.c.id, instances.c.path, instances.c.size).where(
            (instances.c.id == held) | instances.c.sop_instance_uid.in_(needed),
            ~exists().where(jobs.c.instance_id == instances.c.id),
            ~exists().where(needs.c.sop_instance_uid == instances.c.sop_instance_uid),
        )
    ).all()
    delete_instances(connection, [row.id for row in left])
    return list(reports), list(left)


def delete_instances(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(delete(instances).where(instances.c.id.in_(ids)))
