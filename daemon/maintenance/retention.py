"""Retention by age and by size: what is finished leaves ledger and spool; what is not finished is never touched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from config.settings import Retention
from daemon.events import bus
from daemon.events.bus import DeletedForRoom
from daemon.ledger import Ledger, instances, jobs, outbox, retention
from daemon.ledger.database import IDLE_IN_TRANSACTION_S
from daemon.ledger.schema import JobState
from daemon.storage.spool import Spool

DAY_S = 86_400
STRAY_AFTER_S = 3600
# An image that came less than this ago may still get its lesion object: size alone does not remove it.
UNMARKED_KEPT_S = DAY_S
AT_ONCE = 100  # jobs removed in one transaction, which intake waits for
FILES_AT_ONCE = 100  # removed while intake waits

log = structlog.get_logger()


def delete_orphans(ledger: Ledger, spool: Spool) -> int:
    """Remove files without a row that nothing touched for an hour; returns how many.

    They are left where the ledger could not be written after the file was (disk full, ledger locked), which the sender was told.
    """
    before = time.time() - STRAY_AFTER_S
    old = spool.strays(before)
    if not old:
        return 0
    removed = 0
    # Alone, so that intake never finds the file of a row gone that it is about to record.
    with ledger.alone_with_spool() as connection:
        end = _end()
        known = instances.paths(connection) | outbox.paths(connection)
        for path in old:
            if path in known:
                continue
            # Looked at again: an intake may be placing the same content, which touches the file.
            modified = spool.modified(path)
            if modified is not None and modified < before and time.monotonic() < end:
                removed += spool.remove([path])
    if removed:
        log.warning("files without a row removed", files=removed)
    return removed


def delete_expired(ledger: Ledger, spool: Spool, settings: Retention) -> int:
    """Remove finished jobs with their reports, then instances that no job holds or waits for, past their days.

    Returns how many files went.
    """
    now = time.time()
    finished = now - settings.finished_days * DAY_S
    quarantined = now - settings.quarantined_days * DAY_S

    def transition(connection: Connection) -> tuple[list[str], list[str]]:
        reports = jobs.delete_finished(connection, finished, [JobState.DONE, JobState.SUPERSEDED])
        reports += jobs.delete_finished(connection, quarantined, [JobState.QUARANTINED, JobState.FAILED])
        return reports, instances.delete_older_than(connection, finished)

    reports, files = ledger.transact(transition)
    removed = delete_files(ledger, spool, [*reports, *files])
    if removed:
        log.info("retention", reports=len(reports), instances=len(files), files_removed=removed)
    return removed


def delete_files(ledger: Ledger, spool: Spool, paths: Sequence[str]) -> int:
    """Remove files whose rows were forgotten, but for those that were received or written again since; returns how many.

    One that is left here by a crash has no row, and goes as a stray.
    """
    removed = 0
    for start in range(0, len(paths), FILES_AT_ONCE):
        some = paths[start : start + FILES_AT_ONCE]
        with ledger.alone_with_spool() as connection:
            end = _end()
            known = instances.known_paths(connection, some) | outbox.known_paths(connection, some)
            gone = [path for path in some if path not in known]
            if time.monotonic() < end:
                removed += spool.remove(gone)
    return removed


def _end() -> float:
    """Until when this node surely has the spool alone: one that is frozen in between loses that, and removes nothing more."""
    return time.monotonic() + IDLE_IN_TRANSACTION_S / 2


def size_limit(settings: Retention, directory: Path | None) -> int | None:
    """Bytes that the spool may fill: `max_bytes`, `max_disk_fraction` of its disk, or the smaller of both; None without a limit.

    Without a directory the spool is a bucket, of which there is no share.
    """
    limits = [] if settings.max_bytes is None else [int(settings.max_bytes)]
    if settings.max_disk_fraction is not None and directory is not None:
        limits.append(int(settings.max_disk_fraction * shutil.disk_usage(directory).total))
    return min(limits, default=None)


def enforce_size_limit(ledger: Ledger, spool: Spool, settings: Retention) -> DeletedForRoom:
    """Remove what is finished, oldest first, until the spool is within its `size_limit` or only unfinished work is left.

    A job goes with its reports and with what only it was about. An instance that no job is about counts as ended when it came.
    """
    limit = size_limit(settings, None if spool.store is not None else spool.directory)
    if limit is None:
        return DeletedForRoom()
    removed = DeletedForRoom()
    excess = 0
    while True:
        excess, step, paths = ledger.transact(partial(_shrink_to, limit))
        if step != DeletedForRoom():
            bus.publish(step)
        delete_files(ledger, spool, paths)
        removed += step
        if not step.jobs + step.instances:
            break
    if removed != DeletedForRoom():
        log.info("retention by size", limit=limit, **vars(removed))
    if excess > 0:
        log.warning(
            "the spool is larger than [retention] allows, and nothing finished is left to remove", excess=excess
        )
    return removed


def _shrink_to(limit: int, connection: Connection) -> tuple[int, DeletedForRoom, list[str]]:
    """One transaction's worth of removing, oldest first, until `limit` is kept: bytes in excess before, and files to remove."""
    excess = retention.spool_bytes(connection) - limit
    if excess <= 0:
        return excess, DeletedForRoom(), []
    finished = retention.oldest_finished(connection, AT_ONCE)
    unmarked = retention.oldest_unmarked(connection, time.time() - UNMARKED_KEPT_S, AT_ONCE)
    # What lies beyond the end of a full list may be older than the rest of the other one.
    horizon = min((rows[-1].ended_at for rows in (finished, unmarked) if len(rows) == AT_ONCE), default=float("inf"))
    candidates = sorted(
        (row for row in (*finished, *unmarked) if row.ended_at <= horizon), key=lambda row: row.ended_at
    )
    removed, paths = DeletedForRoom(), []
    for row in candidates:
        if removed.bytes >= excess:
            break
        if hasattr(row, "path"):
            retention.delete_instances(connection, [row.id])
            paths.append(row.path)
            removed += DeletedForRoom(instances=1, bytes=row.size)
        else:
            reports, left = retention.delete_job(connection, row.id)
            paths += [item.path for item in (*reports, *left)]
            removed += DeletedForRoom(1, len(left), len(reports), sum(item.size for item in (*reports, *left)))
    return excess, removed, paths
