"""Retrieval: ask the archive for images that a waiting job needs and that nobody sent."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.outbox_sender import retry_backoff
from daemon.archive.query_retrieve import RetrieveKind, RetrieveOutcome, Wanted
from daemon.errors import ArchiveError
from daemon.ledger import Ledger, jobs
from daemon.storage.received_instance import ReceivedInstance

MAX_IMAGES = 100  # asked for at once

log = structlog.get_logger()


def retrieve_missing(
    ledger: Ledger,
    archive: Archive,
    settings: Settings,
    accept: Callable[[ReceivedInstance], None],
) -> int:
    """Ask the archive for images that overdue jobs lack; return how many were asked for.

    Images that arrive go through the same intake as any C-STORE. A job whose images the archive does not have
    waits on, visibly, and the archive is asked again after growing pauses.
    """
    now = time.time()
    with ledger.read() as connection:
        rows = jobs.waiting_for(connection, now - settings.archive.retrieve_after_s, now, MAX_IMAGES)
    if not rows:
        return 0
    wanted = {Wanted(row.study_uid, None, row.sop_instance_uid) for row in rows}
    reason = None
    there: list[Wanted] = []
    outcomes: list[RetrieveOutcome] = []
    try:
        there = archive.find_instances(wanted)
        if there and settings.archive.retrieve == "c-move":
            outcomes = archive.move_instances(there, settings.listener.ae_title)
        elif there:
            outcomes = archive.get_instances(there, accept, settings.listener.max_instance)
    except ArchiveError as error:
        reason = f"the archive could not be asked: {error}"
    found = {item.sop_uid for item in there}
    why = {item.wanted.sop_uid: item.reason for item in outcomes if item.kind is not RetrieveKind.RETRIEVED}
    not_given: dict[int, str] = {}
    missing: dict[int, list[str]] = defaultdict(list)
    attempts: dict[int, int] = {}
    for row in rows:
        attempts[row.job_id] = row.attempts
        if row.sop_instance_uid not in found:
            missing[row.job_id].append(row.sop_instance_uid)
        elif row.sop_instance_uid in why:
            not_given.setdefault(row.job_id, why[row.sop_instance_uid])

    def transition(connection: Connection) -> None:
        for job_id, attempt in attempts.items():
            lacking = missing[job_id]
            again = time.time() + retry_backoff(settings.archive).jittered_pause_s(attempt)
            jobs.asked(connection, job_id, again, reason or _reason(lacking, not_given.get(job_id)))

    ledger.transact(transition)
    log.info("asked the archive for missing images", wanted=len(wanted), found=len(found), reason=reason)
    return len(wanted)


def _reason(lacking: list[str], not_given: str | None) -> str:
    if not lacking:
        why = f" ({not_given})" if not_given else ""
        return f"the archive was asked for the images and has not delivered all of them yet{why}"
    return f"the archive does not have {len(lacking)} of its images: {', '.join(lacking[:3])}"
