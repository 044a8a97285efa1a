"""Jobs in the ledger: one lesion object under one bundle, from waiting for its images to its report being stored.

Here is how a job is paired, and how it ends by what becomes of its reports; the work on it in between is in `work`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, Row, bindparam, case, delete, exists, func, insert, select, update

from daemon.ledger.schema import (
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


def create(
    connection: Connection, instance_id: int, source_uid: str, needed: Sequence[str], bundle: str, now: float
) -> int:
    """A job for this lesion object, waiting for the instances it needs or ready when they are all here."""
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
    """Other content of this lesion object arrived: unfinished work on the old content stops."""
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


_NEEDING = select(needs.c.job_id).where(needs.c.sop_instance_uid == bindparam("uid"))  # made once, as it is asked often


def needing(connection: Connection, sop_instance_uid: str) -> list[int]:
    return list(connection.execute(_NEEDING, {"uid": sop_instance_uid}).scalars())


def promote(connection: Connection, job_ids: Iterable[int] | None, now: float) -> int:
    """Waiting jobs (these, or all) whose every needed instance is here become ready; returns how many."""
    present = exists().where(
        instances.c.sop_instance_uid == needs.c.sop_instance_uid, instances.c.state == InstanceState.CURRENT
    )
    missing = exists().where(needs.c.job_id == jobs.c.id, ~present).correlate(jobs)
    promotion = (
        update(jobs)
        .where(jobs.c.state == JobState.WAITING, ~missing)
        .values(state=JobState.READY, reason=None, attempts=0, not_before=now, complete_at=now)
    )
    if job_ids is not None:
        promotion = promotion.where(jobs.c.id.in_(list(job_ids)))
    return connection.execute(promotion).rowcount


def complete_but_waiting(connection: Connection) -> list[int]:
    """Waiting jobs whose every needed instance is here; there are none unless something went wrong."""
    present = exists().where(
        instances.c.sop_instance_uid == needs.c.sop_instance_uid, instances.c.state == InstanceState.CURRENT
    )
    missing = exists().where(needs.c.job_id == jobs.c.id, ~present).correlate(jobs)
    return list(connection.execute(select(jobs.c.id).where(jobs.c.state == JobState.WAITING, ~missing)).scalars())


def input_changed(connection: Connection, sop_instance_uid: str, now: float) -> None:
    """An instance that jobs read was replaced: they are done again with the new content (invariant 4).

    Not those of a lesion object that was itself replaced: a report on it would become the newest.
    """
    ids = needing(connection, sop_instance_uid)
    if ids:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state.not_in([JobState.WAITING, JobState.SUPERSEDED]), _of_current())
            .values(
                # A running job sees its revision overtaken when it ends, and goes back to ready by itself.
                state=case((jobs.c.state == JobState.RUNNING, jobs.c.state), else_=JobState.READY.value),
                revision=jobs.c.revision + 1,
                attempts=0,
                not_before=now,
                complete_at=now,
                finished_at=None,
                reason=None,
            )
        )


def _of_current() -> ColumnElement[bool]:
    """The job's lesion object was not replaced."""
    return jobs.c.instance_id.in_(select(instances.c.id).where(instances.c.state == InstanceState.CURRENT))


def due_now(connection: Connection, now: float) -> int:
    """The clock was set back, or the service starts: no job waits for a time that an earlier clock named."""
    return connection.execute(
        update(jobs)
        .where(jobs.c.state.in_([JobState.READY, JobState.WAITING]), jobs.c.not_before > now)
        .values(not_before=now)
    ).rowcount


def newest_reports(items: Iterable[Row]) -> list[Row]:
    """Of the outbox items of one job the newest of each kind; older ones were replaced by them, whatever became of those.

    The objects of a kind that were put into the outbox together carry the same time.
    """
    ordered = sorted(items, key=lambda item: item.id)
    newest = {item.kind: item.created_at for item in ordered}
    return [item for item in ordered if item.created_at == newest[item.kind]]


def _newest_reports(connection: Connection, job_id: int) -> list[Row]:
    return newest_reports(connection.execute(select(outbox).where(outbox.c.job_id == job_id)).all())


def finish_if_sent(connection: Connection, job_id: int, now: float) -> None:
    """After an outbox item ended: a sending job is done when its reports are stored (and committed, where that is asked
    for), failed when one of the newest is refused."""
    items = connection.execute(select(outbox).where(outbox.c.job_id == job_id)).all()
    if any(
        item.state in (OutboxState.QUEUED, OutboxState.COMMITTING) for item in items
    ):  # replaced ones go out as well
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
    """A report of this job is that of a newer job too, which has it from now on; this one ends by what it has left."""
    finish_if_sent(connection, job_id, now)
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.DONE, jobs.c.reason.is_(None))
        .values(reason=f"job {to_job} came to the same report and has it now")
    )


def retry(connection: Connection, job_id: int, now: float) -> str:
    """An operator asks for another attempt: quarantined work is read anew, a refused report is queued again.

    Work on a lesion object that was replaced is superseded instead. Returns the job's new state; an unchanged state means
    that there was nothing to retry.
    """
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.QUARANTINED, JobState.FAILED]), ~_of_current())
        .values(state=JobState.SUPERSEDED, reason=REPLACED, finished_at=now)
    )
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one()
    if state == JobState.QUARANTINED:
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(state=JobState.WAITING, attempts=0, reason=None, finished_at=None, revision=jobs.c.revision + 1)
        )
        promote(connection, [job_id], now)
    elif state == JobState.FAILED:
        refused = [item.id for item in _newest_reports(connection, job_id) if item.state == OutboxState.FAILED]
        connection.execute(
            update(outbox)
            .where(outbox.c.id.in_(refused))
            .values(state=OutboxState.QUEUED, attempts=0, commit_attempts=0, next_attempt_at=now, reason=None)
        )
        # A promise about the earlier copy says nothing about the one that goes out now.
        connection.execute(delete(commitments).where(commitments.c.outbox_id.in_(refused)))
        connection.execute(
            update(jobs).where(jobs.c.id == job_id).values(state=JobState.SENDING, reason=None, finished_at=None)
        )
    return connection.execute(select(jobs.c.state).where(jobs.c.id == job_id)).scalar_one()


def delete_finished(connection: Connection, before: float, states: Sequence[JobState]) -> list[str]:
    """Remove jobs in these finished states that ended before `before`, with their outbox rows; returns the reports' paths."""
    # A quarantined job may have a report that says so and that still waits for the archive.
    waiting = exists().where(
        outbox.c.job_id == jobs.c.id, outbox.c.state.in_([OutboxState.QUEUED, OutboxState.COMMITTING])
    )
    chosen = select(jobs.c.id).where(
        jobs.c.state.in_([str(state) for state in states]), jobs.c.finished_at < before, ~waiting
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


def waiting_for(connection: Connection, created_before: float, now: float, limit: int) -> Sequence[Row]:
    """What jobs have waited for since before `created_before`: rows of (job_id, attempts, study_uid, sop_instance_uid).

    `study_uid` is the lesion object's own study. Rows whose job was asked for already are due again at its `not_before`.
    """
    present = exists().where(
        instances.c.sop_instance_uid == needs.c.sop_instance_uid, instances.c.state == InstanceState.CURRENT
    )
    source = instances.alias("source")
    return connection.execute(
        select(jobs.c.id.label("job_id"), jobs.c.attempts, source.c.study_uid, needs.c.sop_instance_uid)
        .join(needs, needs.c.job_id == jobs.c.id)
        .join(source, source.c.id == jobs.c.instance_id)
        .where(
            jobs.c.state == JobState.WAITING,
            (jobs.c.created_at <= created_before) | (jobs.c.created_at > now),  # the clock was set back since
            jobs.c.not_before <= now,
            ~present,
        )
        .order_by(jobs.c.id)
        .limit(limit)
    ).all()


def asked(connection: Connection, job_id: int, again_at: float, reason: str) -> None:
    """The archive was asked for a waiting job's images; `reason` shows why it still waits, `again_at` when to ask next."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.WAITING)
        .values(not_before=again_at, reason=reason, attempts=jobs.c.attempts + 1)
    )


def by_state(connection: Connection) -> dict[str, int]:
    """The number of jobs in each state, every state named."""
    counted = {
        row.state: row.number
        for row in connection.execute(select(jobs.c.state, func.count().label("number")).group_by(jobs.c.state))
    }
    return {state.value: counted.get(state.value, 0) for state in JobState}


def needed_by(connection: Connection, job_id: int) -> list[str]:
    return list(connection.execute(select(needs.c.sop_instance_uid).where(needs.c.job_id == job_id)).scalars())


def unfinished(connection: Connection) -> int:
    return connection.execute(
        select(func.count()).select_from(jobs).where(jobs.c.state.in_([str(state) for state in UNFINISHED]))
    ).scalar_one()
