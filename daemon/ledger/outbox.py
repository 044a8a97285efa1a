"""The outbox in the ledger: reports that wait for the archive, were stored in it, or are refused by it for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from daemon.ledger import jobs as job_rows
from daemon.ledger.schema import OutboxState, commitments, outbox


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
    """Queue a job's reports; one whose SOP Instance UID is known already is the same work done twice, and is not sent again.

    It is this job's from now on, whose end depends on what becomes of it. Returns how many were new.
    """
    rows = connection.execute(
        select(outbox.c.sop_instance_uid, outbox.c.job_id).where(
            outbox.c.sop_instance_uid.in_([report.sop_instance_uid for report in reports])
        )
    ).all()
    job_of = {row.sop_instance_uid: row.job_id for row in rows}
    for report in reports:
        if report.sop_instance_uid in job_of:
            connection.execute(
                update(outbox)
                .where(outbox.c.sop_instance_uid == report.sop_instance_uid)
                .values(job_id=job_id, path=report.path, size=report.size, digest=report.digest)
            )
    for earlier in sorted(set(job_of.values()) - {job_id}):
        job_rows.handed_over(connection, earlier, job_id, now)
    new = [report for report in reports if report.sop_instance_uid not in job_of]
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
    return _due_in(connection, OutboxState.QUEUED, now, limit)


def next_attempt(connection: Connection) -> float | None:
    """When a report is due next to be sent or to be asked about (seconds since the epoch), None when none is."""
    waiting = outbox.c.state.in_([OutboxState.QUEUED, OutboxState.COMMITTING])
    return connection.execute(select(func.min(outbox.c.next_attempt_at)).where(waiting)).scalar_one()


def _ended(connection: Connection, item_id: int, now: float, **values: object) -> None:
    connection.execute(update(outbox).where(outbox.c.id == item_id).values(attempts=outbox.c.attempts + 1, **values))
    _settle(connection, item_id, now)


def stored(connection: Connection, item_id: int, status: int | None, reason: str | None, now: float) -> None:
    """The archive has it (a warning is kept in `reason`)."""
    _ended(connection, item_id, now, state=OutboxState.STORED, status=status, reason=reason, stored_at=now)


def due_now(connection: Connection, now: float, longest_ask_wait_s: float) -> int:
    """The clock was set back, or the service starts: no report waits for a time that an earlier clock named.

    One that waits for the archive's promise waits on, unless for longer than any does: to ask early would count.
    """
    queued = (outbox.c.state == OutboxState.QUEUED) & (outbox.c.next_attempt_at > now)
    asked_for = (outbox.c.state == OutboxState.COMMITTING) & (outbox.c.next_attempt_at > now + longest_ask_wait_s)
    return connection.execute(update(outbox).where(queued | asked_for).values(next_attempt_at=now)).rowcount


def stored_uncommitted(
    connection: Connection, item_id: int, status: int | None, reason: str | None, now: float
) -> None:
    """The archive has it, and is to be asked to commit it."""
    connection.execute(
        update(outbox)
        .where(outbox.c.id == item_id)
        .values(
            state=OutboxState.COMMITTING,
            attempts=outbox.c.attempts + 1,
            status=status,
            reason=reason,
            stored_at=now,
            next_attempt_at=now,
        )
    )


def uncommitted(connection: Connection, now: float, limit: int) -> Sequence[Row]:
    """Reports that are stored and are to be asked about now."""
    return _due_in(connection, OutboxState.COMMITTING, now, limit)


def _due_in(connection: Connection, state: OutboxState, now: float, limit: int) -> Sequence[Row]:
    return connection.execute(
        select(outbox)
        .where(outbox.c.state == state, outbox.c.next_attempt_at <= now)
        .order_by(outbox.c.next_attempt_at, outbox.c.id)
        .limit(limit)
    ).all()


def asked(connection: Connection, transaction_uid: str, again_at: Mapping[int, float]) -> None:
    """A request for commitment of these goes out; without an answer each is due again at its time of `again_at`."""
    connection.execute(
        insert(commitments), [{"transaction_uid": transaction_uid, "outbox_id": item_id} for item_id in again_at]
    )
    for item_id, when in again_at.items():
        connection.execute(
            update(outbox)
            .where(outbox.c.id == item_id, outbox.c.state == OutboxState.COMMITTING)
            .values(next_attempt_at=when)
        )


def ask_ended(connection: Connection, item_ids: Sequence[int], reason: str) -> None:
    """The request was made, which counts; what was answered meanwhile is left as it is."""
    connection.execute(
        update(outbox)
        .where(outbox.c.id.in_(item_ids), outbox.c.state == OutboxState.COMMITTING)
        .values(reason=reason, commit_attempts=outbox.c.commit_attempts + 1)
    )


def not_asked(connection: Connection, again_at: Mapping[int, float], reason: str) -> None:
    """The request could not be made: each is due again at its time of `again_at`."""
    for item_id, when in again_at.items():
        connection.execute(
            update(outbox)
            .where(outbox.c.id == item_id, outbox.c.state == OutboxState.COMMITTING)
            .values(reason=reason, attempts=outbox.c.attempts + 1, next_attempt_at=when)
        )


def of_transaction(connection: Connection, transaction_uid: str) -> Sequence[Row]:
    """The reports that a request for commitment named."""
    return connection.execute(
        select(outbox)
        .join(commitments, commitments.c.outbox_id == outbox.c.id)
        .where(commitments.c.transaction_uid == transaction_uid)
    ).all()


def committed(connection: Connection, item_id: int, reason: str | None, now: float) -> None:
    """The archive promises to keep it: only now is it stored for us. Harmless when repeated.

    A promise counts even after we gave up waiting, as long as nothing was asked anew since.
    """
    asked_for = outbox.c.id.in_(select(commitments.c.outbox_id))
    moved = connection.execute(
        update(outbox)
        .where(
            outbox.c.id == item_id,
            (outbox.c.state == OutboxState.COMMITTING) | ((outbox.c.state == OutboxState.FAILED) & asked_for),
        )
        .values(state=OutboxState.STORED, reason=reason)
    ).rowcount
    if moved:
        _settle(connection, item_id, now)


def commitment_refused(
    connection: Connection, item_id: int, again_at: float | None, status: int, reason: str, now: float
) -> None:
    """The archive does not keep it: it is sent again at `again_at`, or has failed where that is None."""
    values = (
        {"state": OutboxState.FAILED}
        if again_at is None
        else {"state": OutboxState.QUEUED, "next_attempt_at": again_at, "commit_attempts": outbox.c.commit_attempts + 1}
    )
    moved = connection.execute(
        update(outbox)
        .where(outbox.c.id == item_id, outbox.c.state == OutboxState.COMMITTING)
        .values(status=status, reason=reason, **values)
    ).rowcount
    if moved:
        # What the archive lost says nothing about the copy that it gets next.
        connection.execute(delete(commitments).where(commitments.c.outbox_id == item_id))
        _settle(connection, item_id, now)


def _settle(connection: Connection, item_id: int, now: float) -> None:
    job_id = connection.execute(select(outbox.c.job_id).where(outbox.c.id == item_id)).scalar_one()
    job_rows.settle(connection, job_id, now)


def failed(connection: Connection, item_id: int, status: int | None, reason: str, now: float) -> None:
    """The archive refuses it for good; only an operator's retry sends it again."""
    _ended(connection, item_id, now, state=OutboxState.FAILED, status=status, reason=reason)


def retry_at(connection: Connection, item_id: int, when: float, status: int | None, reason: str) -> None:
    connection.execute(
        update(outbox)
        .where(outbox.c.id == item_id)
        .values(attempts=outbox.c.attempts + 1, next_attempt_at=when, status=status, reason=reason)
    )


def of_source(connection: Connection, source_uid: str, kind: str) -> Sequence[Row]:
    """The reports of this kind on this lesion object, oldest first."""
    return connection.execute(
        select(outbox).where(outbox.c.source_uid == source_uid, outbox.c.kind == kind).order_by(outbox.c.id)
    ).all()


def by_uid(connection: Connection, sop_instance_uid: str) -> Row | None:
    return connection.execute(select(outbox).where(outbox.c.sop_instance_uid == sop_instance_uid)).one_or_none()


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
