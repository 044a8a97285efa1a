"""Retention: what is finished long enough is removed from ledger and spool; what is not finished is never touched."""

from __future__ import annotations

import time

import structlog

from config.settings import Retention
from daemon.ledger import Ledger, instances, jobs
from daemon.ledger.schema import JobState
from daemon.spool import Spool

DAY_S = 86_400

log = structlog.get_logger()


def forget(ledger: Ledger, spool: Spool, settings: Retention) -> int:
    """Remove finished jobs with their reports, then instances that no job holds or waits for, past their days.

    Returns how many files went.
    """
    now = time.time()
    finished = now - settings.finished_days * DAY_S
    quarantined = now - settings.quarantined_days * DAY_S
    # Files go inside the transaction, so that intake never finds the file of a row that is being forgotten.
    with ledger.write() as connection:
        reports = jobs.forget_finished(connection, finished, [JobState.DONE, JobState.SUPERSEDED])
        reports += jobs.forget_finished(connection, quarantined, [JobState.QUARANTINED, JobState.FAILED])
        files = instances.forget_older_than(connection, finished)
        removed = spool.remove([*reports, *files])
    if removed:
        log.info("retention", reports=len(reports), instances=len(files), files_removed=removed)
    return removed
