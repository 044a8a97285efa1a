"""Retention: what is finished long enough is removed from ledger and spool; what is not finished is never touched."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from config.settings import Retention
from daemon.ledger import Ledger, instances, jobs, outbox
from daemon.ledger.schema import JobState
from daemon.spool import Spool

DAY_S = 86_400
STRAY_AFTER_S = 3600

log = structlog.get_logger()


def remove_strays(ledger: Ledger, spool: Spool) -> int:
    """Remove files without a row that nothing touched for an hour; returns how many.

    They are left where the ledger could not be written after the file was (disk full, ledger locked), which the sender was told.
    """
    before = time.time() - STRAY_AFTER_S
    old = [path for path in spool.files() if _is_older(path, before)]
    if not old:
        return 0
    removed = 0
    # Inside a transaction, so that intake never finds the file of a row gone that it is about to record.
    with ledger.write() as connection:
        known = instances.paths(connection) | outbox.paths(connection)
        for path in old:
            # Looked at again: with PostgreSQL an intake may be placing the same content, which touches the file.
            if str(path.relative_to(spool.directory)) not in known and _is_older(path, before):
                path.unlink(missing_ok=True)
                removed += 1
    if removed:
        log.warning("files without a row removed", files=removed)
    return removed


def _is_older(path: Path, before: float) -> bool:
    """Whether the file is there and was last touched before; one being written is renamed at any time."""
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False


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
