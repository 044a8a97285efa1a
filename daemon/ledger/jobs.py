"""Jobs in the ledger: one lesion object under one bundle, from waiting for its images to its stored report.

This module pairs jobs with their images, and ends them when their reports end; `job_claims` has the work in
between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, Table, bindparam, case, delete, exists, func, insert, select, update

from daemon.ledger.records import Job, MissingImage, OutboxItem, record_or_none, records
from daemon.ledger.schema import (
    UNDELIVERED,
    UNFINISHED,
    InstanceState,
    JobState,
    OutboxState,
    commitments,
    instances,
    jobs,
    needs,
    outbox,
)

REPLACED = "the lesion object was sent again with other content"

# Conditions of queries on `needs` and `jobs`.
_IS_HERE = exists().where(
    instances.c.sop_instance_uid == needs.c.sop_instance_uid, instances.c.state == InstanceState.CURRENT
)
_LACKS_INSTANCES = exists().where(needs.c.job_id == jobs.c.id, ~_IS_HERE).correlate(jobs)
# The job's lesion object was not replaced.
_IS_CURRENT = jobs.c.instance_id.in_(select(instances.c.id).where(instances.c.state == InstanceState.CURRENT))
# The job has reports that the archive has not taken, or not committed. A quarantined job may have one, too.
HAS_UNDELIVERED = exists().where(outbox.c.job_id == jobs.c.id, outbox.c.state.in_(UNDELIVERED))


def create(
    connection: Connection, instance_id: int, source_uid: str, needed: Sequence[str], bundle: str, now: float
) -> int:
    """Create a job for this lesion object, ready if all instances it needs are here, else waiting.

    Returns its number.
    """
    job_id = connection.execute(
        insert(jobs)
        .values(
            instance_id=instance_id,
            source_uid=source_uid,
            bundle=bundle,
            state=JobState.WAITING,
            revision=0,
            attempts=0,
            not_before=now,
            created_at=now,
        )
        .returning(jobs.c.id)
    ).scalar_one()
    if needed:
        connection.execute(insert(needs), [{"job_id": job_id, "sop_instance_uid": uid} for uid in needed])
    promote(connection, [job_id], now)
    return job_id


def supersede(connection: Connection, source_uid: str, keep_instance: int, now: float) -> None:
    """Stop unfinished work on the old content of a lesion object, of which other content arrived."""
    connection.execute(
        update(jobs)
        .where(
            jobs.c.source_uid == source_uid,
            jobs.c.instance_id != keep_instance,
            jobs.c.state.in_([JobState.WAITING, JobState.READY, JobState.RUNNING]),
        )
        .values(
            state=JobState.SUPERSEDED,
            owner=None,
            revision=jobs.c.revision + 1,
            reason=REPLACED,
            finished_at=now,
        )
    )


_NEEDING = select(needs.c.job_id).where(needs.c.sop_instance_uid == bindparam("uid"))  # built once: it is used often


def needing(connection: Connection, sop_instance_uid: str) -> list[int]:
    """Return the jobs that need this instance."""
    return list(connection.execute(_NEEDING, {"uid": sop_instance_uid}).scalars())


def promote(connection: Connection, job_ids: Iterable[int] | None, now: float) -> int:
    """Make waiting jobs (these, or all) ready if every instance they need is here; return how many."""
    promotion = (
        update(jobs)
        .where(jobs.c.state == JobState.WAITING, ~_LACKS_INSTANCES)
        .values(state=JobState.READY, reason=None, attempts=0, not_before=now, complete_at=now)
    )
    if job_ids is not None:
        promotion = promotion.where(jobs.c.id.in_(list(job_ids)))
    return connection.execute(promotion).rowcount


def complete_but_waiting(connection: Connection) -> list[int]:
    """Return waiting jobs that lack no instance; there are none unless something went wrong."""
    complete = select(jobs.c.id).where(jobs.c.state == JobState.WAITING, ~_LACKS_INSTANCES)
    return list(connection.execute(complete).scalars())


def input_changed(connection: Connection, sop_instance_uid: str, now: float) -> None:
    """Restart the jobs that read an instance, since it was replaced by other content (invariant 4).

    Jobs of a lesion object that was itself replaced are left alone: a report on it would become the newest.
    """
    ids = needing(connection, sop_instance_uid)
    if ids:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state.not_in([JobState.WAITING, JobState.SUPERSEDED]), _IS_CURRENT)
            .values(
                # A running job finds another revision when it ends, and becomes ready again then.
                state=case((jobs.c.state == JobState.RUNNING, jobs.c.state), else_=JobState.READY.value),
                revision=jobs.c.revision + 1,
                attempts=0,
                not_before=now,
                complete_at=now,
                finished_at=None,
                reason=None,
            )
        )


def due_now(connection: Connection, now: float) -> int:
    """Make every job due now that waits for a time, after the clock was set back or at a start.

    Returns how many.
    """
    return connection.execute(
        update(jobs)
        .where(jobs.c.state.in_([JobState.READY, JobState.WAITING]), jobs.c.not_before > now)
        .values(not_before=now)
    ).rowcount


def newest_reports(items: Iterable[OutboxItem]) -> list[OutboxItem]:
    """Return the newest of each kind among the outbox items of one job; they replace the older ones.

    The objects of a kind that were put into the outbox together carry the same time.
    """
    ordered = sorted(items, key=lambda item: item.id)
    newest = {item.kind: item.created_at for item in ordered}
    return [item for item in ordered if item.created_at == newest[item.kind]]


def reports_of(connection: Connection, job_id: int) -> list[OutboxItem]:
    """Return the job's outbox items, oldest first."""
    return records(
        OutboxItem, connection.execute(select(outbox).where(outbox.c.job_id == job_id).order_by(outbox.c.id))
    )


def finish_if_sent(connection: Connection, job_id: int, now: float) -> None:
    """End a job that is sending, once all its reports have ended.

    It is done if its reports are stored (and committed, if that is asked for), and failed if one of the
    newest is refused.
    """
    items = reports_of(connection, job_id)
    if any(item.state in UNDELIVERED for item in items):  # replaced ones are sent as well
        return
    refused = [item for item in newest_reports(items) if item.state == OutboxState.FAILED]
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.SENDING, JobState.FAILED]))
        .values(
            state=JobState.FAILED if refused else JobState.DONE,
            reason=refused[0].reason if refused else case((jobs.c.state == JobState.FAILED, None), else_=jobs.c.reason),
            finished_at=now,
        )
    )


def handed_over(connection: Connection, job_id: int, to_job: int, now: float) -> None:
    """End this job by its remaining reports, after a newer job with the same report took one over."""
    finish_if_sent(connection, job_id, now)
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.DONE, jobs.c.reason.is_(None))
        .values(reason=f"job {to_job} came to the same report and has it now")
    )


def retry(connection: Connection, job_id: int, now: float) -> str:
    """Retry a job for an operator: quarantined work is read again, a refused report is queued again.

    Work on a lesion object that was replaced is superseded instead. Returns the job's new state; an unchanged
    state means that there was nothing to retry.
    """
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.QUARANTINED, JobState.FAILED]), ~_IS_CURRENT)
        .values(state=JobState.SUPERSEDED, reason=REPLACED, finished_at=now)
    )
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one()
    if state == JobState.QUARANTINED:
        _read_again(connection, jobs.c.id == job_id)
        promote(connection, [job_id], now)
    elif state == JobState.FAILED:
        refused = [
            item.id for item in newest_reports(reports_of(connection, job_id)) if item.state == OutboxState.FAILED
        ]
        connection.execute(
            update(outbox)
            .where(outbox.c.id.in_(refused))
            .values(state=OutboxState.QUEUED, attempts=0, commit_attempts=0, next_attempt_at=now, reason=None)
        )
        # A promise about the earlier copy does not hold for the one that is sent now.
        connection.execute(delete(commitments).where(commitments.c.outbox_id.in_(refused)))
        connection.execute(
            update(jobs).where(jobs.c.id == job_id).values(state=JobState.SENDING, reason=None, finished_at=None)
        )
    return connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one()


def rewrite_reports(connection: Connection, job_id: int, now: float) -> None:
    """Restart a done job whose lesion object is current, so that its reports are written again."""
    _read_again(connection, _is_rewritable(job_id))
    promote(connection, [job_id], now)


def is_rewritable(connection: Connection, job_id: int) -> bool:
    """Return whether the job is done and its lesion object was not replaced."""
    return connection.execute(select(exists().where(_is_rewritable(job_id)))).scalar_one()


def _is_rewritable(job_id: int) -> ColumnElement[bool]:
    return (jobs.c.id == job_id) & (jobs.c.state == JobState.DONE) & _IS_CURRENT


def _read_again(connection: Connection, which: ColumnElement[bool]) -> None:
    values = {"attempts": 0, "reason": None, "finished_at": None, "revision": jobs.c.revision + 1}
    connection.execute(update(jobs).where(which).values(state=JobState.WAITING, **values))


def delete_finished(connection: Connection, before: float, states: Sequence[JobState]) -> list[str]:
    """Delete jobs in these finished states that ended before `before`, with their outbox rows.

    Returns the paths of their reports.
    """
    chosen = select(jobs.c.id).where(
        jobs.c.state.in_([str(state) for state in states]), jobs.c.finished_at < before, ~HAS_UNDELIVERED
    )
    ids = list(connection.execute(chosen).scalars())
    reports: list[str] = []
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        reports += connection.execute(select(outbox.c.path).where(outbox.c.job_id.in_(some))).scalars()
        connection.execute(delete(outbox).where(outbox.c.job_id.in_(some)))
        connection.execute(delete(needs).where(needs.c.job_id.in_(some)))
        connection.execute(delete(jobs).where(jobs.c.id.in_(some)))
    return reports


def waiting_for(connection: Connection, created_before: float, now: float, limit: int) -> list[MissingImage]:
    """Return what jobs have waited for since before `created_before`.

    Images that the archive was asked for already are due again at the `not_before` of their job.
    """
    source = instances.alias("source")
    missing = (
        select(jobs.c.id.label("job_id"), jobs.c.attempts, source.c.study_uid, needs.c.sop_instance_uid)
        .join(needs, needs.c.job_id == jobs.c.id)
        .join(source, source.c.id == jobs.c.instance_id)
        .where(
            jobs.c.state == JobState.WAITING,
            (jobs.c.created_at <= created_before) | (jobs.c.created_at > now),  # the clock was set back since
            jobs.c.not_before <= now,
            ~_IS_HERE,
        )
        .order_by(jobs.c.id)
        .limit(limit)
    )
    return records(MissingImage, connection.execute(missing))


def asked(connection: Connection, job_id: int, again_at: float, reason: str) -> None:
    """Record that the archive was asked for a job's images, why the job waits on, and when to ask again."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.WAITING)
        .values(not_before=again_at, reason=reason, attempts=jobs.c.attempts + 1)
    )


def by_state(connection: Connection) -> dict[str, int]:
    """Return the number of jobs in each state, every state named."""
    return count_by_state(connection, jobs, JobState)


def count_by_state(connection: Connection, table: Table, states: type[StrEnum]) -> dict[str, int]:
    """Return the number of rows of `table` in each of `states`, every state named."""
    counted = {
        row.state: row.number
        for row in connection.execute(select(table.c.state, func.count().label("number")).group_by(table.c.state))
    }
    return {state.value: counted.get(state.value, 0) for state in states}


def by_id(connection: Connection, job_id: int) -> Job | None:
    """Return the job with this number; None if there is none."""
    return record_or_none(Job, connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none())


def every(connection: Connection) -> list[Job]:
    """Return all jobs."""
    return records(Job, connection.execute(select(jobs)))


def newest(connection: Connection, limit: int, state: str | None = None) -> list[Job]:
    """Return the newest jobs, in this state if one is given, newest first."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    return records(Job, connection.execute(query if state is None else query.where(jobs.c.state == state)))


def needed_by(connection: Connection, job_id: int) -> list[str]:
    """Return the SOP Instance UIDs that the job needs."""
    return list(connection.execute(select(needs.c.sop_instance_uid).where(needs.c.job_id == job_id)).scalars())


def unfinished(connection: Connection) -> int:
    """Return the number of unfinished jobs."""
    return connection.execute(
        select(func.count()).select_from(jobs).where(jobs.c.state.in_([str(state) for state in UNFINISHED]))
    ).scalar_one()
