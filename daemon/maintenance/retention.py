"""Retention by age and by size: finished work is deleted, unfinished work is never touched."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from config.settings import Retention
from daemon.events import bus
from daemon.events.bus import DeletedForRoom
from daemon.ledger import Ledger, instances, jobs, outbox, retention
from daemon.ledger.records import FinishedJob, UnneededInstance
from daemon.ledger.schema import JobState
from daemon.storage.deletion import delete_files, exclusive_until
from daemon.storage.spool import Spool

DAY_S = 86_400
ORPHAN_AFTER_S = 3600
# An image that came less than this ago may still get its lesion object: size alone does not delete it.
MIN_UNNEEDED_AGE_S = DAY_S
MAX_JOBS = 100  # deleted in one transaction, for which intake waits

log = structlog.get_logger()


def delete_orphans(ledger: Ledger, spool: Spool) -> int:
    """Delete files without a row that were not modified for an hour; return how many.

    They are left behind if the ledger cannot be written after the file (disk full, ledger locked). Their
    senders were told of the failure.
    """
    before = time.time() - ORPHAN_AFTER_S
    old = spool.written_before(before)
    if not old:
        return 0
    deleted = 0
    # Under the lock, so that no file is deleted while intake records it.
    with ledger.alone_with_spool() as connection:
        end = exclusive_until()
        known = instances.paths(connection) | outbox.paths(connection)
        for path in old:
            if path in known:
                continue
            # Checked again: an intake may be storing the same content, which touches the file.
            modified = spool.modified(path)
            if modified is not None and modified < before and time.monotonic() < end:
                deleted += spool.delete([path])
    if deleted:
        log.warning("orphaned files deleted", files=deleted)
    return deleted


def delete_expired(ledger: Ledger, spool: Spool, settings: Retention) -> int:
    """Delete finished jobs with their reports, and instances without a job, whose days are over.

    An instance that an unfinished job waits for is kept. Returns how many files were deleted.
    """
    now = time.time()
    finished = now - settings.finished_days * DAY_S
    quarantined = now - settings.quarantined_days * DAY_S

    def transition(connection: Connection) -> tuple[list[str], list[str]]:
        reports = jobs.delete_finished(connection, finished, [JobState.DONE, JobState.SUPERSEDED])
        reports += jobs.delete_finished(connection, quarantined, [JobState.QUARANTINED, JobState.FAILED])
        return reports, instances.delete_older_than(connection, finished)

    reports, files = ledger.transact(transition)
    deleted = delete_files(ledger, spool, [*reports, *files])
    if deleted:
        log.info("expired work deleted", reports=len(reports), instances=len(files), files=deleted)
    return deleted


def size_limit(settings: Retention, directory: Path | None) -> int | None:
    """Return how many bytes the spool may hold: `max_bytes` or a share of its disk, the smaller one.

    None if there is no limit. Without a `directory` the spool is a bucket, which has no disk.
    """
    limits = [] if settings.max_bytes is None else [int(settings.max_bytes)]
    if settings.max_disk_fraction is not None and directory is not None:
        limits.append(int(settings.max_disk_fraction * shutil.disk_usage(directory).total))
    return min(limits, default=None)


def enforce_size_limit(ledger: Ledger, spool: Spool, settings: Retention) -> DeletedForRoom:
    """Delete finished work, oldest first, until the spool is within its `size_limit` or none is left.

    A job is deleted with its reports and with the instances that only it was about. An instance without a job
    counts as ended when it came.
    """
    limit = size_limit(settings, None if spool.store is not None else spool.directory)
    if limit is None:
        return DeletedForRoom()
    deleted = DeletedForRoom()
    excess = 0
    while True:
        excess, step, paths = ledger.transact(partial(_delete_oldest, limit))
        if step != DeletedForRoom():
            bus.publish(step)
        delete_files(ledger, spool, paths)
        deleted += step
        if not step.jobs + step.instances:
            break
    if deleted != DeletedForRoom():
        log.info("work deleted to keep the size limit", limit=limit, **vars(deleted))
    if excess > 0:
        log.warning("the spool exceeds its size limit, and no finished work is left to delete", excess=excess)
    return deleted


def _delete_oldest(limit: int, connection: Connection) -> tuple[int, DeletedForRoom, list[str]]:
    """Delete rows in one transaction, oldest first, until `limit` is kept.

    Returns how many bytes there were in excess, what was deleted, and the paths of the files to delete.
    """
    excess = retention.spool_bytes(connection) - limit
    if excess <= 0:
        return excess, DeletedForRoom(), []
    finished = retention.oldest_finished(connection, MAX_JOBS)
    unneeded = retention.oldest_unneeded(connection, time.time() - MIN_UNNEEDED_AGE_S, MAX_JOBS)
    # Rows beyond the end of a full list may be older than the rest of the other list.
    ends = [rows[-1].ended_at for rows in (finished, unneeded) if len(rows) == MAX_JOBS]
    horizon = min(ends, default=float("inf"))
    both: list[FinishedJob | UnneededInstance] = [*finished, *unneeded]
    candidates = sorted((record for record in both if record.ended_at <= horizon), key=lambda record: record.ended_at)
    deleted, paths = DeletedForRoom(), []
    for record in candidates:
        if deleted.bytes >= excess:
            break
        if isinstance(record, UnneededInstance):
            retention.delete_instances(connection, [record.id])
            paths.append(record.path)
            deleted += DeletedForRoom(instances=1, bytes=record.size)
        else:
            reports, left = retention.delete_job(connection, record.id)
            files = (*reports, *left)
            paths += [file.path for file in files]
            deleted += DeletedForRoom(1, len(left), len(reports), sum(file.size for file in files))
    return excess, deleted, paths
