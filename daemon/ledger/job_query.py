"""Jobs selected by time, state or number, in the order of their numbers, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from daemon.ledger import Ledger
from daemon.ledger.records import JobInStudy, records
from daemon.ledger.schema import instances, jobs

PAGE = 500


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to select. A condition that is None or empty excludes nothing."""

    since: float | None = None  # created at or after, in seconds since the epoch
    until: float | None = None  # created before
    states: tuple[str, ...] = ()  # in one of these
    numbers: tuple[int, ...] = ()  # one of these
    limit: int | None = None


def select_jobs(ledger: Ledger, query: JobQuery) -> Iterator[Sequence[JobInStudy]]:
    """Yield the selected jobs in pages.

    Each page is a short read of its own, so that a long export keeps neither memory nor a view of the
    database.
    """
    after, left = 0, query.limit
    rows = select(jobs, instances.c.study_uid).join(instances, instances.c.id == jobs.c.instance_id).order_by(jobs.c.id)
    if query.since is not None:
        rows = rows.where(jobs.c.created_at >= query.since)
    if query.until is not None:
        rows = rows.where(jobs.c.created_at < query.until)
    if query.states:
        rows = rows.where(jobs.c.state.in_(query.states))
    if query.numbers:
        rows = rows.where(jobs.c.id.in_(query.numbers))
    while left is None or left > 0:
        with ledger.read() as connection:
            page = records(JobInStudy, connection.execute(rows.where(jobs.c.id > after).limit(min(PAGE, left or PAGE))))
        if not page:
            return
        yield page
        after = page[-1].id
        left = None if left is None else left - len(page)
