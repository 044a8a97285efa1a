"""Counts, ages and the last jobs, for metrics and the status page, by queries that use an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, case, func, select

from daemon.ledger.schema import UNFINISHED, JobState, OutboxState, instances, jobs, outbox

# States in which something still has to happen; in the others, rows only gather until retention deletes them.
PRESSING = (*UNFINISHED, JobState.FAILED, JobState.QUARANTINED)
PRESSING_REPORTS = (OutboxState.QUEUED, OutboxState.COMMITTING, OutboxState.FAILED)


@dataclass(frozen=True)
class InState:
    """How many jobs or reports are in a state, and since when the oldest of them.

    A job counts as waiting since its lesion object came, as ready, running or sending since all of it was
    here, and as failed or quarantined since it ended; a report since it was made.
    """

    count: int
    since: float | None  # seconds since the epoch; None if there is none


@dataclass(frozen=True)
class UrgentWork:
    """Jobs and reports in every state in which something has to be done, by state."""

    jobs: Mapping[JobState, InState]
    reports: Mapping[OutboxState, InState]


@dataclass(frozen=True)
class LastJob:
    """One job as the status page shows it, without patient data and probabilities."""

    job_id: int
    state: str
    source_class: str  # SOP Class UID of its lesion object
    lesions: int  # how many were classified
    created_at: float
    finished_at: float | None
    seconds: float | None  # from when all of it was here to its end
    reports: Mapping[str, Mapping[str, int]]  # by kind: the number of its reports in each state


def urgent_work(connection: Connection) -> UrgentWork:
    """Return the number and age of jobs and reports in each state in which something has to be done."""
    since = case(
        (jobs.c.state == JobState.WAITING, jobs.c.created_at),
        (jobs.c.state.in_([JobState.FAILED, JobState.QUARANTINED]), jobs.c.finished_at),
        else_=func.coalesce(jobs.c.complete_at, jobs.c.created_at),
    )
    found_jobs = _by_state(connection, jobs.c.state, PRESSING, since)
    found_reports = _by_state(connection, outbox.c.state, PRESSING_REPORTS, outbox.c.created_at)
    nothing = InState(0, None)
    return UrgentWork(
        {state: found_jobs.get(state.value, nothing) for state in PRESSING},
        {state: found_reports.get(state.value, nothing) for state in PRESSING_REPORTS},
    )


def _by_state(
    connection: Connection,
    state: ColumnElement[str],
    states: Sequence[JobState] | Sequence[OutboxState],
    since: ColumnElement[float],
) -> dict[str, InState]:
    rows = connection.execute(
        select(state.label("state"), func.count().label("number"), func.min(since).label("since"))
        .where(state.in_([one.value for one in states]))
        .group_by(state)
    )
    return {row.state: InState(row.number, row.since) for row in rows}


def last_jobs(connection: Connection, limit: int) -> list[LastJob]:
    """Return the newest jobs, newest first."""
    rows = connection.execute(
        select(jobs, instances.c.sop_class_uid)
        .join(instances, instances.c.id == jobs.c.instance_id)
        .order_by(jobs.c.id.desc())
        .limit(limit)
    ).all()
    reports: dict[int, dict[str, dict[str, int]]] = {row.id: {} for row in rows}
    for item in connection.execute(
        select(outbox.c.job_id, outbox.c.kind, outbox.c.state, func.count().label("number"))
        .where(outbox.c.job_id.in_(list(reports)))
        .group_by(outbox.c.job_id, outbox.c.kind, outbox.c.state)
    ):
        reports[item.job_id].setdefault(item.kind, {})[item.state] = item.number
    return [
        LastJob(
            job_id=row.id,
            state=row.state,
            source_class=row.sop_class_uid,
            lesions=len((row.result or {}).get("lesions", ())),
            created_at=row.created_at,
            finished_at=row.finished_at,
            seconds=None
            if row.finished_at is None or row.complete_at is None
            else max(0.0, row.finished_at - row.complete_at),
            reports=reports[row.id],
        )
        for row in rows
    ]
