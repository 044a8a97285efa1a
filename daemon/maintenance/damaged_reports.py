"""A done job whose report was damaged in the spool: `mammod jobs retry` has the report written again.

The archive holds the report. The new one has the same SOP Instance UID, and is not sent a second time.
"""

from __future__ import annotations

from daemon.ledger import Ledger, jobs, outbox
from daemon.ledger.jobs import newest_reports
from daemon.maintenance.consistency_check import file_faults
from daemon.storage.spool import Spool


def rewrite_damaged_reports(ledger: Ledger, spool: Spool, job_id: int, now: float) -> bool:
    """Delete the damaged reports of a done job, and restart the job; return False if none is damaged."""
    with ledger.read() as connection:
        if not jobs.is_rewritable(connection, job_id):
            return False
        reports = newest_reports(outbox.of_job(connection, job_id))
    damaged = [report.path for report in reports if file_faults(spool, report)[1]]
    if not damaged:
        return False
    spool.delete(damaged)
    ledger.transact(lambda connection: jobs.rewrite_reports(connection, job_id, now))
    return True
