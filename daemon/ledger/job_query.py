"""Jobs chosen by time, state or number, in the order of their numbers, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, select

from daemon.ledger import Ledger
from daemon.ledger.schema import instances, jobs

PAGE = 500


@dataclass(frozen=True)
class JobQuery:
    """Jobs made at `since` or later and before `until` (seconds since the epoch), in one of `states`, among `numbers`.

    What is None or empty chooses nothing out.
    """

    since: float | None = None
    until: float | None = None
    states: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    limit: int | None = None


def select_jobs(ledger: Ledger, chosen: JobQuery) -> Iterator[Sequence[Row]]:
    """The rows of the chosen jobs with their lesion object's `study_uid`, in pages.

    Each page is a short read of its own, so that a long export keeps neither memory nor a view of the database.
    """
    after, left = 0, chosen.limit
    query = (
        select(jobs, instances.c.study_uid).join(instances, instances.c.id == jobs.c.instance_id).order_by(jobs.c.id)
    )
    if chosen.since is not None:
        query = query.where(jobs.c.created_at >= chosen.since)
    if chosen.until is not None:
        query = query.where(jobs.c.created_at < chosen.until)
    if chosen.states:
        query = query.where(jobs.c.state.in_(chosen.states))
    if chosen.numbers:
        query = query.where(jobs.c.id.in_(chosen.numbers))
    while left is None or left > 0:
        with ledger.read() as connection:
            page = connection.execute(query.where(jobs.c.id > after).limit(min(PAGE, left or PAGE))).all()
        if not page:
            return
        yield page
        after = page[-1].id
        left = None if left is None else left - len(page)
