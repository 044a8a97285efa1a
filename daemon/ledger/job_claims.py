"""Claims on jobs: a node claims a ready job, which is running until the node reports its outcome.

A running job carries its node as `owner`. Every transition that ends work takes the job as it was claimed. If
the job has another owner by now, or none, or an input changed meanwhile, the transition changes nothing but
what is stated below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, exists, insert, select, update

from daemon.ledger.jobs import needed_by, promote
from daemon.ledger.records import Job, records
from daemon.ledger.schema import JobState, jobs, needs, nodes

# A job that was begun this often without an end (the service died over it) is quarantined instead of begun
# again.
MAX_ATTEMPTS = 5


def claim(connection: Connection, owner: str, limit: int, now: float) -> list[Job]:
    """Claim up to `limit` ready jobs for node `owner`, oldest first.

    They are running, under the node's bundle. Returns nothing if `owner` is no node any more, because its
    lease expired.
    """
    bundle = connection.execute(select(nodes.c.bundle).where(nodes.c.id == owner)).scalar_one_or_none()
    if bundle is None:
        return []
    due = (
        select(jobs.c.id)
        .where(jobs.c.state == JobState.READY, jobs.c.not_before <= now)
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.execute(due).scalars())
    if not ids:
        return []
    move_to_bundle(connection, bundle, jobs.c.id.in_(ids))
    connection.execute(
        update(jobs).where(jobs.c.id.in_(ids)).values(state=JobState.RUNNING, owner=owner, attempts=jobs.c.attempts + 1)
    )
    return records(Job, connection.execute(select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)))


def claimable(connection: Connection, owner: str, now: float, in_flight: Sequence[int]) -> bool:
    """Return whether there is a ready job, or one that runs under this node but is not among `in_flight`."""
    ready = (jobs.c.state == JobState.READY) & (jobs.c.not_before <= now)
    return connection.execute(select(exists().where(ready | _is_orphan(owner, in_flight)))).scalar_one()


def release(connection: Connection, owner: str, in_flight: Sequence[int], now: float) -> int:
    """Make jobs ready again that run under this node but are not `in_flight`.

    Their end could not be recorded.

    Returns how many.
    """
    return _restart(connection, _is_orphan(owner, in_flight), now)


def return_to_ready(connection: Connection, owner: str, job_ids: Sequence[int] | None, now: float) -> int:
    """Make these running jobs of a node that stops (None: all of them) ready again, as if never begun.

    Returns how many.
    """
    own = (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == owner)
    return _restart(connection, own if job_ids is None else own & jobs.c.id.in_(list(job_ids)), now)


def _is_orphan(owner: str, in_flight: Sequence[int]) -> ColumnElement[bool]:
    return (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == owner) & jobs.c.id.not_in(in_flight)


def _restart(connection: Connection, which: ColumnElement[bool], now: float) -> int:
    """Make running jobs ready; the attempt does not count."""
    one_less = case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0)
    restarted = update(jobs).where(which).values(state=JobState.READY, owner=None, not_before=now, attempts=one_less)
    return connection.execute(restarted).rowcount


def release_orphans(connection: Connection, now: float) -> tuple[int, int]:
    """Release jobs that ran on nodes that are gone.

    Returns how many were quarantined, and how many are ready again. A job that was begun `MAX_ATTEMPTS` times
    is quarantined.
    """
    orphaned = (jobs.c.state == JobState.RUNNING) & (jobs.c.owner.is_(None) | jobs.c.owner.not_in(select(nodes.c.id)))
    quarantined = connection.execute(
        update(jobs)
        .where(orphaned, jobs.c.attempts >= MAX_ATTEMPTS)
        .values(
            state=JobState.QUARANTINED,
            owner=None,
            finished_at=now,
            reason=f"the service ended {MAX_ATTEMPTS} times while it worked on this; see the log, then `mammod jobs retry`",
        )
    ).rowcount
    ready = update(jobs).where(orphaned).values(state=JobState.READY, owner=None, not_before=now)
    return quarantined, connection.execute(ready).rowcount


def move_to_bundle(connection: Connection, bundle: str, which: ColumnElement[bool] | None = None) -> None:
    """Move jobs that were not begun (or `which`) to this bundle, unless it has a job for the same object."""
    not_begun = jobs.c.state.in_([JobState.WAITING, JobState.READY])
    other = jobs.alias("other")
    under_it = exists().where(other.c.instance_id == jobs.c.instance_id, other.c.bundle == bundle)
    connection.execute(update(jobs).where(not_begun if which is None else which, ~under_it).values(bundle=bundle))


def _finish(connection: Connection, job: Job, now: float, **values: Any) -> bool:
    """Move a running job on if its inputs did not change.

    Otherwise it becomes ready again (or stays superseded). Nothing happens if its node does not own it any
    more.
    """
    own = (jobs.c.id == job.id) & (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == job.owner)
    moved = connection.execute(
        update(jobs).where(own, jobs.c.revision == job.revision).values(owner=None, **values)
    ).rowcount
    if not moved:
        connection.execute(update(jobs).where(own).values(state=JobState.READY, owner=None, not_before=now))
    return bool(moved)


def sending(connection: Connection, job: Job, result: Any, now: float, reason: str | None = None) -> bool:
    """Record that the job's reports are made; call `outbox.put` in the same transaction.

    Returns False if its inputs changed meanwhile.
    """
    return _finish(connection, job, now, state=JobState.SENDING, result=result, reason=reason)


def done(connection: Connection, job: Job, reason: str, result: Any, now: float) -> bool:
    """End the job without a report (nothing to classify)."""
    return _finish(connection, job, now, state=JobState.DONE, reason=reason, result=result, finished_at=now)


def quarantine(connection: Connection, job: Job, reason: str, now: float) -> bool:
    """Quarantine a job whose input cannot be used; the input stays in the spool."""
    return _finish(connection, job, now, state=JobState.QUARANTINED, reason=reason, finished_at=now)


def retry_at(connection: Connection, job: Job, reason: str, when: float) -> bool:
    """Schedule another attempt at `when`, after a fault of ours over this job."""
    return _finish(connection, job, when, state=JobState.READY, reason=reason, not_before=when)


def postpone(connection: Connection, job: Job, reason: str, when: float) -> bool:
    """Postpone to `when` a job that was not itself at fault (disk full, no classifier).

    This attempt does not count.
    """
    return _finish(
        connection, job, when, state=JobState.READY, reason=reason, not_before=when, attempts=job.attempts - 1
    )


def needs_more(connection: Connection, job: Job, uids: Sequence[str], now: float) -> None:
    """Have a running job wait for these instances, which it turned out to need as well."""
    if not _finish(connection, job, now, state=JobState.WAITING, attempts=0, not_before=now):
        return
    known = set(needed_by(connection, job.id))
    new = [{"job_id": job.id, "sop_instance_uid": uid} for uid in uids if uid not in known]
    if new:
        connection.execute(insert(needs), new)
    promote(connection, [job.id], now)
