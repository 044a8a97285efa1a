"""The outbox in the ledger: reports that wait for the archive, were stored in it, or are refused by it for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, insert, select, update

from daemon.ledger import jobs as job_rows
from daemon.ledger.schema import OutboxState, outbox


@dataclass(frozen=True)
class Report:
    """A report that lies durable in the spool: `path` relative to its directory, `size` in bytes, sha256 `digest` of the file."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    path: str
    size: int
    digest: str | None = None


def put(connection: Connection, job_id: int, source_uid: str, reports: Sequence[Report], now: float) -> int:
    """Queue a job's reports; one whose SOP Instance UID is known already is the same work done twice, and is left as it is.

    Returns how many were new. Where none was, the job is settled at once.
    """
    known = set(
        connection.execute(
            select(outbox.c.sop_instance_uid).where(
                outbox.c.sop_instance_uid.in_([report.sop_instance_uid for report in reports])
            )
        ).scalars()
    )
    new = [report for report in reports if report.sop_instance_uid not in known]
    for report in new:
        connection.execute(
            insert(outbox).values(
                **{name: getattr(report, name) for name in Report.__dataclass_fields__},
                job_id=job_id,
                source_uid=source_uid,
                state=OutboxState.QUEUED,
                attempts=0,
                next_attempt_at=now,
                created_at=now,
            )
        )
    job_rows.settle(connection, job_id, now)
    return len(new)


def due(connection: Connection, now: float, limit: int) -> Sequence[Row]:
    return connection.execute(
        select(outbox)
        .where(outbox.c.state == OutboxState.QUEUED, outbox.c.next_attempt_at <= now)
        .order_by(outbox.c.next_attempt_at, outbox.c.id)
        .limit(limit)
    ).all()


def next_attempt(connection: Connection) -> float | None:
    """When the next report is due (seconds since the epoch), None when nothing is queued."""
    return connection.execute(
        select(func.min(outbox.c.next_attempt_at)).where(outbox.c.state == OutboxState.QUEUED)
    ).scalar_one()


def _ended(connection: Connection, item_id: int, now: float, **values: object) -> None:
    connection.execute(update(outbox).where(outbox.c.id == item_id).values(attempts=outbox.c.attempts + 1, **values))
    job_id = connection.execute(select(outbox.c.job_id).where(outbox.c.id == item_id)).scalar_one()
    job_rows.settle(connection, job_id, now)


def stored(connection: Connection, item_id: int, status: int | None, reason: str | None, now: float) -> None:
    """The archive has it (a warning is kept in `reason`)."""
    _ended(connection, item_id, now, state=OutboxState.STORED, status=status, reason=reason, stored_at=now)


def failed(connection: Connection, item_id: int, status: int | None, reason: str, now: float) -> None:
    """The archive refuses it for good; only an operator's retry sends it again."""
    _ended(connection, item_id, now, state=OutboxState.FAILED, status=status, reason=reason)


def retry_at(connection: Connection, item_id: int, when: float, status: int | None, reason: str) -> None:
    connection.execute(
        update(outbox)
        .where(outbox.c.id == item_id)
        .values(attempts=outbox.c.attempts + 1, next_attempt_at=when, status=status, reason=reason)
    )


def newest_of(connection: Connection, source_uid: str, kind: str, other_than: str) -> Row | None:
    """The newest report of this kind on this lesion object, other than `other_than`: the new report's predecessor."""
    return connection.execute(
        select(outbox)
        .where(outbox.c.source_uid == source_uid, outbox.c.kind == kind, outbox.c.sop_instance_uid != other_than)
        .order_by(outbox.c.id.desc())
        .limit(1)
    ).one_or_none()


def of_job(connection: Connection, job_id: int) -> Sequence[Row]:
    return connection.execute(select(outbox).where(outbox.c.job_id == job_id).order_by(outbox.c.id)).all()


def paths(connection: Connection) -> set[str]:
    return set(connection.execute(select(outbox.c.path)).scalars())


def by_state(connection: Connection) -> dict[str, int]:
    counted = {
        row.state: row.number
        for row in connection.execute(select(outbox.c.state, func.count().label("number")).group_by(outbox.c.state))
    }
    return {state.value: counted.get(state.value, 0) for state in OutboxState}
