"""The outbox in the ledger: reports that wait for the archive, were stored in it, or are refused by it for good.

A node that sends reports, or asks about them, has claimed them: they carry it as `owner`. What it says of one counts only
while it is the owner; an answer of the archive to a request for commitment counts in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Update, delete, func, insert, select, update

from daemon.ledger import jobs as job_rows
from daemon.ledger import nodes
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
    job_rows.finish_if_sent(connection, job_id, now)
    return len(new)


def claim(connection: Connection, owner: str, now: float, limit: int) -> Sequence[Row]:
    """Node `owner` takes the reports to be sent now, its own of an earlier call among them; it is the only one to send them."""
    return _claim_in(connection, OutboxState.QUEUED, owner, now, limit)


def claim_uncommitted(connection: Connection, owner: str, now: float, limit: int) -> Sequence[Row]:
    """The same for reports that are stored and are to be asked about now."""
    return _claim_in(connection, OutboxState.COMMITTING, owner, now, limit)


def _claim_in(connection: Connection, state: OutboxState, owner: str, now: float, limit: int) -> Sequence[Row]:
    if not nodes.lives(connection, owner):
        return []
    due = (
        select(outbox)
        .where(outbox.c.state == state, outbox.c.next_attempt_at <= now, _free_for(owner))
        .order_by(outbox.c.next_attempt_at, outbox.c.id)
        .limit(limit)
    )
    rows = connection.execute(due.with_for_update(skip_locked=True)).all()
    connection.execute(update(outbox).where(outbox.c.id.in_([row.id for row in rows])).values(owner=owner))
    return rows


def _free_for(owner: str) -> ColumnElement[bool]:
    return outbox.c.owner.is_(None) | (outbox.c.owner == owner)


def next_attempt(connection: Connection, owner: str, state: OutboxState) -> float | None:
    """When a report in this state (QUEUED: to be sent, COMMITTING: to be asked about) is due next for `owner`, in seconds since
    the epoch; None when none is."""
    due = select(func.min(outbox.c.next_attempt_at)).where(outbox.c.state == state, _free_for(owner))
    return connection.execute(due).scalar_one()


def _said(connection: Connection, item_id: int, owner: str, among: OutboxState | None = None, **values: object) -> bool:
    """The owner says of a report that is under way what came of it; False where it is not the owner's any more."""
    under_way = [OutboxState.QUEUED, OutboxState.COMMITTING] if among is None else [among]
    said = update(outbox).where(outbox.c.id == item_id, outbox.c.state.in_(under_way), outbox.c.owner == owner)
    return bool(connection.execute(said.values(owner=None, **values)).rowcount)


def stored(
    connection: Connection, item_id: int, status: int | None, reason: str | None, now: float, owner: str
) -> bool:
    """The archive has it (a warning is kept in `reason`)."""
    ended = {"state": OutboxState.STORED, "status": status, "reason": reason, "stored_at": now}
    said = _said(connection, item_id, owner, OutboxState.QUEUED, attempts=outbox.c.attempts + 1, **ended)
    if said:
        _settle(connection, item_id, now)
    return said


def failed(connection: Connection, item_id: int, status: int | None, reason: str, now: float, owner: str) -> bool:
    """The archive refuses it for good, or does not commit it; only an operator's retry sends it again."""
    ended: dict[str, Any] = {"state": OutboxState.FAILED, "status": status, "reason": reason}
    said = _said(connection, item_id, owner, attempts=outbox.c.attempts + 1, **ended)
    if said:
        _settle(connection, item_id, now)
    return said


def retry_at(connection: Connection, item_id: int, when: float, status: int | None, reason: str, owner: str) -> bool:
    again = {"next_attempt_at": when, "status": status, "reason": reason}
    return _said(connection, item_id, owner, OutboxState.QUEUED, attempts=outbox.c.attempts + 1, **again)


def due_now(connection: Connection, now: float, longest_ask_wait_s: float) -> int:
    """The clock was set back, or the service starts: no report waits for a time that an earlier clock named.

    One that waits for the archive's promise waits on, unless for longer than any does: to ask early would count.
    """
    queued = (outbox.c.state == OutboxState.QUEUED) & (outbox.c.next_attempt_at > now)
    asked_for = (outbox.c.state == OutboxState.COMMITTING) & (outbox.c.next_attempt_at > now + longest_ask_wait_s)
    return connection.execute(update(outbox).where(queued | asked_for).values(next_attempt_at=now)).rowcount


def stored_uncommitted(
    connection: Connection, item_id: int, status: int | None, reason: str | None, now: float, owner: str
) -> bool:
    """The archive has it, and is to be asked to commit it."""
    now_stored = {"state": OutboxState.COMMITTING, "stored_at": now, "next_attempt_at": now}
    facts = {"attempts": outbox.c.attempts + 1, "status": status, "reason": reason}
    return _said(connection, item_id, owner, OutboxState.QUEUED, **facts, **now_stored)


def asked(connection: Connection, owner: str, transaction_uid: str, again_at: Mapping[int, float]) -> None:
    """A request for commitment of these goes out; without an answer each is due again at its time of `again_at`."""
    connection.execute(
        insert(commitments), [{"transaction_uid": transaction_uid, "outbox_id": item_id} for item_id in again_at]
    )
    for item_id, when in again_at.items():
        connection.execute(_asking(owner, [item_id]).values(next_attempt_at=when))


def ask_ended(connection: Connection, owner: str, item_ids: Sequence[int], reason: str) -> None:
    """The request was made, which counts; what was answered meanwhile is left as it is."""
    counted = outbox.c.commit_attempts + 1
    connection.execute(_asking(owner, item_ids).values(owner=None, reason=reason, commit_attempts=counted))


def not_asked(connection: Connection, owner: str, again_at: Mapping[int, float], reason: str) -> None:
    """The request could not be made: each is due again at its time of `again_at`."""
    for item_id, when in again_at.items():
        again = {"reason": reason, "attempts": outbox.c.attempts + 1, "next_attempt_at": when}
        connection.execute(_asking(owner, [item_id]).values(owner=None, **again))


def _asking(owner: str, item_ids: Sequence[int]) -> Update:
    return update(outbox).where(
        outbox.c.id.in_(item_ids), outbox.c.state == OutboxState.COMMITTING, outbox.c.owner == owner
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
        .values(state=OutboxState.STORED, owner=None, reason=reason)
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
        .values(owner=None, status=status, reason=reason, **values)
    ).rowcount
    if moved:
        # What the archive lost says nothing about the copy that it gets next.
        connection.execute(delete(commitments).where(commitments.c.outbox_id == item_id))
        _settle(connection, item_id, now)


def _settle(connection: Connection, item_id: int, now: float) -> None:
    job_id = connection.execute(select(outbox.c.job_id).where(outbox.c.id == item_id)).scalar_one()
    job_rows.finish_if_sent(connection, job_id, now)


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


def known_paths(connection: Connection, some: Sequence[str]) -> set[str]:
    """Those of these spool paths that rows refer to."""
    return set(connection.execute(select(outbox.c.path).where(outbox.c.path.in_(some))).scalars())


def by_state(connection: Connection) -> dict[str, int]:
    counted = {
        row.state: row.number
        for row in connection.execute(select(outbox.c.state, func.count().label("number")).group_by(outbox.c.state))
    }
    return {state.value: counted.get(state.value, 0) for state in OutboxState}
