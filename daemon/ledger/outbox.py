"""The outbox in the ledger: reports that wait for the archive, are stored there, or were refused for good.

A node that sends reports, or asks about them, has claimed them: they carry its id in `owner`. Its outcome for
a report counts only while it is the owner. An answer of the archive to a request for commitment always
counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, delete, exists, func, insert, select, update

from daemon.ledger import jobs as job_rows
from daemon.ledger import nodes
from daemon.ledger.records import OutboxItem, record_or_none, records
from daemon.ledger.schema import UNDELIVERED, OutboxState, commitments, outbox

_QUEUED = (OutboxState.QUEUED,)


@dataclass(frozen=True)
class Report:
    """A report that is durable in the spool, and is to be queued."""

    kind: str  # as `reports.kinds` names it
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    path: str  # of its file, relative to the spool directory
    size: int  # bytes of its file
    digest: str | None = None  # SHA-256 of the whole file


def put(connection: Connection, job_id: int, source_uid: str, reports: Sequence[Report], now: float) -> int:
    """Queue a job's reports; return how many were new.

    A report whose SOP Instance UID is known already is the same work done twice, and is not sent again. It
    belongs to this job from then on, which ends when it ends.
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
    job_rows.finish_if_sent(connection, job_id, now)
    return len(new)


def claim(connection: Connection, owner: str, now: float, limit: int) -> list[OutboxItem]:
    """Claim reports that are to be sent now, for node `owner` alone.

    Those of its earlier calls are among them.
    """
    return _claim_in(connection, OutboxState.QUEUED, owner, now, limit)


def claim_uncommitted(connection: Connection, owner: str, now: float, limit: int) -> list[OutboxItem]:
    """Claim reports that are stored, and that the archive is to be asked to commit now."""
    return _claim_in(connection, OutboxState.COMMITTING, owner, now, limit)


def _claim_in(connection: Connection, state: OutboxState, owner: str, now: float, limit: int) -> list[OutboxItem]:
    if not nodes.is_joined(connection, owner):
        return []
    due = (
        select(outbox)
        .where(outbox.c.state == state, outbox.c.next_attempt_at <= now, _is_free_for(owner))
        .order_by(outbox.c.next_attempt_at, outbox.c.id)
        .limit(limit)
    )
    items = records(OutboxItem, connection.execute(due.with_for_update(skip_locked=True)))
    connection.execute(update(outbox).where(outbox.c.id.in_([item.id for item in items])).values(owner=owner))
    return items


def _is_free_for(owner: str) -> ColumnElement[bool]:
    return outbox.c.owner.is_(None) | (outbox.c.owner == owner)


def next_attempt(connection: Connection, owner: str, state: OutboxState) -> float | None:
    """Return when a report is due next for `owner`, in seconds since the epoch; None if there is none.

    `state` is QUEUED for reports to be sent, COMMITTING for those to be asked about.
    """
    due = select(func.min(outbox.c.next_attempt_at)).where(outbox.c.state == state, _is_free_for(owner))
    return connection.execute(due).scalar_one()


def _release(
    connection: Connection, item_id: int, owner: str, among: Sequence[OutboxState] = UNDELIVERED, **values: object
) -> bool:
    """Record the owner's outcome for a report, and release it.

    Returns False if it is not the owner's any more.
    """
    owned = update(outbox).where(outbox.c.id == item_id, outbox.c.state.in_(among), outbox.c.owner == owner)
    return bool(connection.execute(owned.values(owner=None, **values)).rowcount)


def stored(
    connection: Connection, item_id: int, status: int | None, reason: str | None, now: float, owner: str
) -> bool:
    """Record that the archive has stored a report (a warning is kept in `reason`).

    Returns False if it has another owner.
    """
    values = {"state": OutboxState.STORED, "status": status, "reason": reason, "stored_at": now}
    released = _release(connection, item_id, owner, _QUEUED, attempts=outbox.c.attempts + 1, **values)
    if released:
        _finish_job(connection, item_id, now)
    return released


def failed(connection: Connection, item_id: int, status: int | None, reason: str, now: float, owner: str) -> bool:
    """Record that the archive refuses a report for good, or does not commit it.

    Returns False if it has another owner. Only an operator's retry sends it again.
    """
    values: dict[str, Any] = {"state": OutboxState.FAILED, "status": status, "reason": reason}
    released = _release(connection, item_id, owner, attempts=outbox.c.attempts + 1, **values)
    if released:
        _finish_job(connection, item_id, now)
    return released


def retry_at(connection: Connection, item_id: int, when: float, status: int | None, reason: str, owner: str) -> bool:
    """Schedule another attempt to send a report; return False if it has another owner."""
    values = {"next_attempt_at": when, "status": status, "reason": reason}
    return _release(connection, item_id, owner, _QUEUED, attempts=outbox.c.attempts + 1, **values)


def due_now(connection: Connection, now: float, max_commitment_wait_s: float) -> int:
    """Make every queued report due now, after the clock was set back or at a start.

    Returns how many were changed.

    A report that waits for the archive's promise waits on, unless for longer than `max_commitment_wait_s`:
    asking early would count as an attempt.
    """
    queued = (outbox.c.state == OutboxState.QUEUED) & (outbox.c.next_attempt_at > now)
    asked_for = (outbox.c.state == OutboxState.COMMITTING) & (outbox.c.next_attempt_at > now + max_commitment_wait_s)
    return connection.execute(update(outbox).where(queued | asked_for).values(next_attempt_at=now)).rowcount


def stored_uncommitted(
    connection: Connection, item_id: int, status: int | None, reason: str | None, now: float, owner: str
) -> bool:
    """Record that the archive has stored a report, and is to be asked to commit it.

    Returns False if it has another owner.
    """
    now_stored = {"state": OutboxState.COMMITTING, "stored_at": now, "next_attempt_at": now}
    facts = {"attempts": outbox.c.attempts + 1, "status": status, "reason": reason}
    return _release(connection, item_id, owner, _QUEUED, **facts, **now_stored)


def asked(connection: Connection, owner: str, transaction_uid: str, again_at: Mapping[int, float]) -> None:
    """Record a request for commitment that is about to be sent.

    `again_at`: when to ask again about each report.
    """
    connection.execute(
        insert(commitments), [{"transaction_uid": transaction_uid, "outbox_id": item_id} for item_id in again_at]
    )
    for item_id, when in again_at.items():
        connection.execute(_asking(owner, [item_id]).values(next_attempt_at=when))


def ask_ended(connection: Connection, owner: str, item_ids: Sequence[int], reason: str) -> None:
    """Count a request for commitment that was made.

    Reports that were answered meanwhile are left as they are.
    """
    counted = outbox.c.commit_attempts + 1
    connection.execute(_asking(owner, item_ids).values(owner=None, reason=reason, commit_attempts=counted))


def not_asked(connection: Connection, owner: str, again_at: Mapping[int, float], reason: str) -> None:
    """Record that a request could not be made; `again_at`: when to ask again about each report."""
    for item_id, when in again_at.items():
        again = {"reason": reason, "attempts": outbox.c.attempts + 1, "next_attempt_at": when}
        connection.execute(_asking(owner, [item_id]).values(owner=None, **again))


def _asking(owner: str, item_ids: Sequence[int]) -> Update:
    return update(outbox).where(
        outbox.c.id.in_(item_ids), outbox.c.state == OutboxState.COMMITTING, outbox.c.owner == owner
    )


def of_transaction(connection: Connection, transaction_uid: str) -> list[OutboxItem]:
    """Return the reports that a request for commitment named."""
    named = (
        select(outbox)
        .join(commitments, commitments.c.outbox_id == outbox.c.id)
        .where(commitments.c.transaction_uid == transaction_uid)
    )
    return records(OutboxItem, connection.execute(named))


def committed(connection: Connection, item_id: int, reason: str | None, now: float) -> None:
    """Record the archive's promise to keep a report, which is stored for us from then on; may be repeated.

    A promise counts even after the service gave up waiting, as long as nothing was asked again since.
    """
    asked_for = outbox.c.id.in_(select(commitments.c.outbox_id))
    moved = connection.execute(
        update(outbox)
        .where(
            outbox.c.id == item_id,
            (outbox.c.state == OutboxState.COMMITTING) | ((outbox.c.state == OutboxState.FAILED) & asked_for),
        )
        .values(state=OutboxState.STORED, owner=None, reason=reason)
    ).rowcount
    if moved:
        _finish_job(connection, item_id, now)


def commitment_refused(
    connection: Connection, item_id: int, again_at: float | None, status: int, reason: str, now: float
) -> None:
    """Record that the archive does not keep a report.

    It is sent again at `again_at`, or has failed if that is None.
    """
    values = (
        {"state": OutboxState.FAILED}
        if again_at is None
        else {"state": OutboxState.QUEUED, "next_attempt_at": again_at, "commit_attempts": outbox.c.commit_attempts + 1}
    )
    moved = connection.execute(
        update(outbox)
        .where(outbox.c.id == item_id, outbox.c.state == OutboxState.COMMITTING)
        .values(owner=None, status=status, reason=reason, **values)
    ).rowcount
    if moved:
        # A refusal of this copy does not hold for the copy that the archive gets next.
        connection.execute(delete(commitments).where(commitments.c.outbox_id == item_id))
        _finish_job(connection, item_id, now)


def _finish_job(connection: Connection, item_id: int, now: float) -> None:
    job_id = connection.execute(select(outbox.c.job_id).where(outbox.c.id == item_id)).scalar_one()
    job_rows.finish_if_sent(connection, job_id, now)


def of_source(connection: Connection, source_uid: str, kind: str) -> list[OutboxItem]:
    """Return the reports of this kind on this lesion object, oldest first."""
    of_kind = select(outbox).where(outbox.c.source_uid == source_uid, outbox.c.kind == kind).order_by(outbox.c.id)
    return records(OutboxItem, connection.execute(of_kind))


def by_uid(connection: Connection, sop_instance_uid: str) -> OutboxItem | None:
    """Return the report with this SOP Instance UID; None if there is none."""
    row = connection.execute(select(outbox).where(outbox.c.sop_instance_uid == sop_instance_uid)).one_or_none()
    return record_or_none(OutboxItem, row)


def of_job(connection: Connection, job_id: int) -> list[OutboxItem]:
    """Return the job's reports, oldest first."""
    return job_rows.reports_of(connection, job_id)


def of_jobs(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[OutboxItem]]:
    """Return the reports of each of these jobs that has any, oldest first."""
    items = records(
        OutboxItem, connection.execute(select(outbox).where(outbox.c.job_id.in_(job_ids)).order_by(outbox.c.id))
    )
    of_job: dict[int, list[OutboxItem]] = {}
    for item in items:
        of_job.setdefault(item.job_id, []).append(item)
    return of_job


def every(connection: Connection) -> list[OutboxItem]:
    """Return all reports."""
    return records(OutboxItem, connection.execute(select(outbox)))


def is_known(connection: Connection, item_id: int) -> bool:
    """Return whether there is a report with this row id."""
    return connection.execute(select(exists().where(outbox.c.id == item_id))).scalar_one()


def paths(connection: Connection) -> set[str]:
    """Return the spool paths that rows refer to."""
    return set(connection.execute(select(outbox.c.path)).scalars())


def known_paths(connection: Connection, some: Sequence[str]) -> set[str]:
    """Return those of these spool paths that rows refer to."""
    return set(connection.execute(select(outbox.c.path).where(outbox.c.path.in_(some))).scalars())


def by_state(connection: Connection) -> dict[str, int]:
    """Return the number of reports in each state, every state named."""
    return job_rows.count_by_state(connection, outbox, OutboxState)
