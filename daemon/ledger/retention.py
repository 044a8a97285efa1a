"""What may be deleted before its days are over, oldest first: finished jobs, and instances without a job.

Unfinished work is never among it: unfinished jobs, jobs with a report that still waits for the archive, and
every instance that one of these holds or needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select

from daemon.ledger.instances import is_unneeded
from daemon.ledger.jobs import HAS_UNDELIVERED
from daemon.ledger.records import FinishedJob, StoredFile, UnneededInstance, records
from daemon.ledger.schema import UNFINISHED, instances, jobs, needs, outbox


def spool_bytes(connection: Connection) -> int:
    """Return the bytes of all instances and reports."""
    return sum(
        int(connection.execute(select(func.coalesce(func.sum(table.c.size), 0))).scalar_one())  # PostgreSQL: a Decimal
        for table in (instances, outbox)
    )


def oldest_finished(connection: Connection, limit: int) -> list[FinishedJob]:
    """Return finished jobs whose reports have all ended too, the one that ended first at the front."""
    finished = (
        select(jobs.c.id, jobs.c.finished_at.label("ended_at"))
        .where(
            jobs.c.state.not_in([str(state) for state in UNFINISHED]),
            jobs.c.finished_at.is_not(None),
            ~HAS_UNDELIVERED,
        )
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return records(FinishedJob, connection.execute(finished))


def oldest_unneeded(connection: Connection, before: float, limit: int) -> list[UnneededInstance]:
    """Return instances received before `before` that no job holds or needs, the oldest at the front."""
    unneeded = (
        select(instances.c.id, instances.c.received_at.label("ended_at"), instances.c.path, instances.c.size)
        .where(instances.c.received_at < before, is_unneeded())
        .order_by(instances.c.received_at, instances.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return records(UnneededInstance, connection.execute(unneeded))


def delete_job(connection: Connection, job_id: int) -> tuple[list[StoredFile], list[StoredFile]]:
    """Delete a job, its reports, and the instances that only it was about.

    Returns the files of the reports and the files of the instances, which are left to be deleted.
    """
    reports = connection.execute(select(outbox.c.path, outbox.c.size).where(outbox.c.job_id == job_id)).all()
    connection.execute(delete(outbox).where(outbox.c.job_id == job_id))
    needed = list(connection.execute(select(needs.c.sop_instance_uid).where(needs.c.job_id == job_id)).scalars())
    held = connection.execute(select(jobs.c.instance_id).where(jobs.c.id == job_id)).scalar_one()
    connection.execute(delete(needs).where(needs.c.job_id == job_id))
    connection.execute(delete(jobs).where(jobs.c.id == job_id))
    left = connection.execute(
        select(instances.c.id, instances.c.path, instances.c.size).where(
            (instances.c.id == held) | instances.c.sop_instance_uid.in_(needed), is_unneeded()
        )
    ).all()
    delete_instances(connection, [row.id for row in left])
    return records(StoredFile, reports), [StoredFile(row.path, row.size) for row in left]


def delete_instances(connection: Connection, ids: Sequence[int]) -> None:
    """Delete the instances with these row ids; their files are left to be deleted."""
    connection.execute(delete(instances).where(instances.c.id.in_(ids)))
