"""Work on jobs in the ledger: a node claims a ready job, which is running until the node says what came of it.

A job that runs carries its node as `owner`. Every end of work names the job as it was claimed: where it has another owner by
now, or none, or an input changed meanwhile, that end changes nothing but what is said below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, exists, insert, select, update

from daemon.ledger.jobs import needed_by, promote
from daemon.ledger.schema import JobState, jobs, needs, nodes

# A job whose work was begun this often without an end (the service died over it) is not begun again by itself.
MAX_ATTEMPTS = 5


def claim(connection: Connection, owner: str, limit: int, now: float) -> Sequence[Row]:
    """Node `owner` takes up to `limit` ready jobs, oldest first; they are running from here on, under the node's bundle.

    None for a node that is not one any more: it was taken for dead.
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
    return connection.execute(select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)).all()


def claimable(connection: Connection, owner: str, now: float, in_flight: Sequence[int]) -> bool:
    """Whether there is a ready job, or one that runs under this node in the ledger but is not among `in_flight`."""
    ready = (jobs.c.state == JobState.READY) & (jobs.c.not_before <= now)
    return connection.execute(select(exists().where(ready | _stray(owner, in_flight)))).scalar_one()


def release(connection: Connection, owner: str, in_flight: Sequence[int], now: float) -> int:
    """Jobs that run under this node and that it does not work on become ready again: their end could not be recorded.

    Returns how many.
    """
    return _begin_again(connection, _stray(owner, in_flight), now)


def return_to_ready(connection: Connection, owner: str, job_ids: Sequence[int] | None, now: float) -> int:
    """The node ends while it works on these (None: on any): they are as if never begun. Returns how many."""
    own = (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == owner)
    return _begin_again(connection, own if job_ids is None else own & jobs.c.id.in_(list(job_ids)), now)


def _stray(owner: str, in_flight: Sequence[int]) -> ColumnElement[bool]:
    return (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == owner) & jobs.c.id.not_in(in_flight)


def _begin_again(connection: Connection, which: ColumnElement[bool], now: float) -> int:
    """Running jobs become ready, and the attempt does not count."""
    one_less = case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0)
    again = update(jobs).where(which).values(state=JobState.READY, owner=None, not_before=now, attempts=one_less)
    return connection.execute(again).rowcount


def give_back_orphans(connection: Connection, now: float) -> tuple[int, int]:
    """What ran on nodes that are none any more: given up after `MAX_ATTEMPTS`, else begun again; how many of each."""
    orphaned = (jobs.c.state == JobState.RUNNING) & (jobs.c.owner.is_(None) | jobs.c.owner.not_in(select(nodes.c.id)))
    given_up = connection.execute(
        update(jobs)
        .where(orphaned, jobs.c.attempts >= MAX_ATTEMPTS)
        .values(
            state=JobState.QUARANTINED,
            owner=None,
            finished_at=now,
            reason=f"the service ended {MAX_ATTEMPTS} times while it worked on this; see the log, then `mammod jobs retry`",
        )
    ).rowcount
    again = update(jobs).where(orphaned).values(state=JobState.READY, owner=None, not_before=now)
    return given_up, connection.execute(again).rowcount


def move_to_bundle(connection: Connection, bundle: str, which: ColumnElement[bool] | None = None) -> None:
    """Work that was not begun (or `which`) is to be done under this bundle, but for what has a job under it already."""
    unbegun = jobs.c.state.in_([JobState.WAITING, JobState.READY])
    other = jobs.alias("other")
    under_it = exists().where(other.c.instance_id == jobs.c.instance_id, other.c.bundle == bundle)
    connection.execute(update(jobs).where(unbegun if which is None else which, ~under_it).values(bundle=bundle))


def _finish(connection: Connection, job: Row, now: float, **values: Any) -> bool:
    """Move a running job on if its inputs are still those it read; otherwise it becomes ready again (or stays superseded).

    Nothing happens where it is not its node's any more.
    """
    own = (jobs.c.id == job.id) & (jobs.c.state == JobState.RUNNING) & (jobs.c.owner == job.owner)
    moved = connection.execute(
        update(jobs).where(own, jobs.c.revision == job.revision).values(owner=None, **values)
    ).rowcount
    if not moved:
        connection.execute(update(jobs).where(own).values(state=JobState.READY, owner=None, not_before=now))
    return bool(moved)


def sending(connection: Connection, job: Row, result: Any, now: float, reason: str | None = None) -> bool:
    """The job's reports are made; call `outbox.put` in the same transaction. False: its inputs changed meanwhile."""
    return _finish(connection, job, now, state=JobState.SENDING, result=result, reason=reason)


def done(connection: Connection, job: Row, reason: str, result: Any, now: float) -> bool:
    """The job ends without a report (nothing to classify)."""
    return _finish(connection, job, now, state=JobState.DONE, reason=reason, result=result, finished_at=now)


def quarantine(connection: Connection, job: Row, reason: str, now: float) -> bool:
    """The input cannot be used; it stays in the spool with this reason."""
    return _finish(connection, job, now, state=JobState.QUARANTINED, reason=reason, finished_at=now)


def try_again(connection: Connection, job: Row, reason: str, when: float) -> bool:
    """Something of ours failed over this job: another attempt at `when`."""
    return _finish(connection, job, when, state=JobState.READY, reason=reason, not_before=when)


def postpone(connection: Connection, job: Row, reason: str, when: float) -> bool:
    """Nothing of the job's own is in its way (disk full, no classifier): this attempt does not count, another comes at `when`."""
    return _finish(
        connection, job, when, state=JobState.READY, reason=reason, not_before=when, attempts=job.attempts - 1
    )


def needs_more(connection: Connection, job: Row, uids: Sequence[str], now: float) -> None:
    """A running job turned out to need these instances as well: it waits for them."""
    if not _finish(connection, job, now, state=JobState.WAITING, attempts=0, not_before=now):
        return
    known = set(needed_by(connection, job.id))
    new = [{"job_id": job.id, "sop_instance_uid": uid} for uid in uids if uid not in known]
    if new:
        connection.execute(insert(needs), new)
    promote(connection, [job.id], now)
