"""A done job whose report was damaged in the spool: `mammod jobs retry` has the report written again.

The archive has it; what is made again has the same SOP Instance UID, and is not sent a second time.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from daemon.ledger import Ledger, jobs, outbox
from daemon.ledger.jobs import newest_reports
from daemon.ledger.schema import InstanceState, JobState, instances
from daemon.ledger.schema import jobs as job_table
from daemon.maintenance.consistency_check import file_faults
from daemon.storage.spool import Spool


def rewrite_damaged_reports(ledger: Ledger, spool: Spool, job_id: int, now: float) -> bool:
    """Take what is left of a done job's damaged reports away, and have the job done again; False where none is damaged."""
    current = select(instances.c.id).where(instances.c.state == InstanceState.CURRENT)
    done = (job_table.c.id == job_id, job_table.c.state == JobState.DONE, job_table.c.instance_id.in_(current))
    with ledger.read() as connection:
        if connection.execute(select(job_table.c.id).where(*done)).one_or_none() is None:
            return False
        reports = newest_reports(outbox.of_job(connection, job_id))
    damaged = [report.path for report in reports if file_faults(spool, report)[1]]
    if not damaged:
        return False
    spool.remove(damaged)

    def begin_again(connection: Connection) -> None:
        connection.execute(
            update(job_table)
            .where(*done)
            .values(
                state=JobState.WAITING, attempts=0, reason=None, finished_at=None, revision=job_table.c.revision + 1
            )
        )
        jobs.promote(connection, [job_id], now)

    ledger.transact(begin_again)
    return True
