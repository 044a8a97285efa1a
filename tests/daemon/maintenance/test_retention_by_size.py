"""Retention by size over random ledgers: unfinished work stays, the oldest goes first, and no more."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from structlog.testing import capture_logs

from config.settings import Retention
from daemon.events.bus import DeletedForRoom
from daemon.ledger import Ledger
from daemon.ledger.schema import instances, jobs, needs, outbox
from daemon.maintenance.consistency_check import check_consistency
from daemon.maintenance.retention import delete_expired, enforce_size_limit, size_limit
from daemon.storage.spool import Spool

DAY = 86_400
FINISHED = ("done", "failed", "quarantined", "superseded")
JOB_STATES = ("waiting", "ready", "running", "sending", *FINISHED)

instance_rows = st.lists(
    st.fixed_dictionaries({"size": st.integers(1, 50), "days": st.integers(0, 12)}), min_size=1, max_size=8
)
job_rows = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.integers(0, 7),
            "needs": st.sets(st.integers(0, 7), max_size=3),
            "state": st.sampled_from(JOB_STATES),
            "days": st.integers(0, 12),
            "reports": st.lists(st.sampled_from(["queued", "committing", "stored", "failed"]), max_size=2),
        }
    ),
    max_size=7,
)


def fill(ledger: Ledger, spool: Spool, instance_list: list[dict[str, Any]], job_list: list[dict[str, Any]]) -> None:
    """Write rows and files as drawn, in place of what was there; a job names instances by list position."""
    now = time.time()
    spool.delete(entry.path for entry in spool.entries())
    with ledger.write() as connection:
        for table in (outbox, needs, jobs, instances):
            connection.execute(delete(table))
        for number, row in enumerate(instance_list):
            path = f"instances/{number}.dcm"
            spool.absolute(path).write_bytes(bytes(row["size"]))
            connection.execute(
                insert(instances).values(
                    id=number + 1, sop_instance_uid=f"1.2.{number}", sop_class_uid="1.2", study_uid="1", series_uid="1",
                    transfer_syntax_uid="1.2", digest="d", size=row["size"], path=path, state="current",
                    calling_ae="A", received_at=now - row["days"] * DAY - 60, times_received=1,
                )
            )  # fmt: skip
        held: set[int] = set()
        for number, row in enumerate(job_list):
            source = row["source"] % len(instance_list)
            if source in held:
                continue
            held.add(source)
            ended = now - row["days"] * DAY if row["state"] in FINISHED else None
            connection.execute(
                insert(jobs).values(
                    id=number + 1, instance_id=source + 1, source_uid=f"1.2.{source}", bundle="b", state=row["state"],
                    revision=0, attempts=0, not_before=0, created_at=0, finished_at=ended, reason="told",
                )
            )  # fmt: skip
            for needed in {place % len(instance_list) for place in row["needs"]}:
                connection.execute(insert(needs).values(job_id=number + 1, sop_instance_uid=f"1.2.{needed}"))
            for place, state in enumerate(row["reports"]):
                path = f"outbox/{number}-{place}.dcm"
                spool.absolute(path).write_bytes(bytes(10))
                connection.execute(
                    insert(outbox).values(
                        job_id=number + 1, source_uid=f"1.2.{source}", kind="tid1500", sop_class_uid="1.2",
                        sop_instance_uid=f"1.3.{number}.{place}", study_uid="1", series_uid="1",
                        transfer_syntax_uid="1.2", path=path, size=10, state=state, attempts=0, next_attempt_at=0,
                        created_at=0,
                    )
                )  # fmt: skip


class Seen:
    """What stands in the ledger, as plain Python."""

    def __init__(self, ledger: Ledger) -> None:
        with ledger.read() as connection:
            self.instances = {row.id: row for row in connection.execute(select(instances))}
            self.jobs = {row.id: row for row in connection.execute(select(jobs))}
            self.reports = {row.id: row for row in connection.execute(select(outbox))}
            self.needs = [(row.job_id, row.sop_instance_uid) for row in connection.execute(select(needs))]

    @property
    def bytes(self) -> int:
        return sum(row.size for row in (*self.instances.values(), *self.reports.values()))

    def is_finished(self, job: int) -> bool:
        waiting = any(row.job_id == job and row.state in ("queued", "committing") for row in self.reports.values())
        return self.jobs[job].state in FINISHED and not waiting

    def about(self, job: int) -> set[int]:
        """The instances that a job holds or needs."""
        uids = {uid for owner, uid in self.needs if owner == job}
        named = {number for number, row in self.instances.items() if row.sop_instance_uid in uids}
        return named | {self.jobs[job].instance_id}

    def unmarked(self) -> set[int]:
        marked = set().union(*(self.about(job) for job in self.jobs)) if self.jobs else set()
        old = time.time() - DAY
        return {number for number, row in self.instances.items() if number not in marked and row.received_at < old}


@given(instance_list=instance_rows, job_list=job_rows, limit=st.integers(1, 300))
@hypothesis_settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_what_is_not_finished_stays_and_the_oldest_finished_goes_first(
    ledger: Ledger, spool: Spool, instance_list: list[dict[str, Any]], job_list: list[dict[str, Any]], limit: int
) -> None:
    fill(ledger, spool, instance_list, job_list)
    before = Seen(ledger)
    removed = enforce_size_limit(ledger, spool, Retention(max_bytes=limit))  # type: ignore[arg-type]
    after = Seen(ledger)

    unfinished = {job for job in before.jobs if not before.is_finished(job)}
    assert unfinished <= set(after.jobs)
    for job in unfinished:
        assert before.about(job) <= set(after.instances)
        assert {number for number, row in before.reports.items() if row.job_id == job} <= set(after.reports)
    # Every row that is left has its file, and no other file is left.
    left = {row.path for row in (*after.instances.values(), *after.reports.values())}
    assert {entry.path for entry in spool.entries()} == left
    assert before.bytes - after.bytes == removed.bytes

    gone = [before.jobs[job].finished_at for job in set(before.jobs) - set(after.jobs)]
    gone += [
        before.instances[number].received_at for number in before.unmarked() - set(after.instances)
    ]  # an instance that lost its job went with it
    stays = [after.jobs[job].finished_at for job in after.jobs if after.is_finished(job)]
    stays += [after.instances[number].received_at for number in before.unmarked() & set(after.instances)]
    assert not gone or not stays or max(gone) <= min(stays)
    assert after.bytes <= limit or not stays
    if gone:
        assert before.bytes > limit
    if before.bytes <= limit:
        assert removed == DeletedForRoom() and after.jobs.keys() == before.jobs.keys()


@given(instance_list=instance_rows, job_list=job_rows, days=st.integers(1, 12))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
def test_by_age_too_what_is_not_finished_stays(
    ledger: Ledger, spool: Spool, instance_list: list[dict[str, Any]], job_list: list[dict[str, Any]], days: int
) -> None:
    fill(ledger, spool, instance_list, job_list)
    before = Seen(ledger)
    delete_expired(ledger, spool, Retention(finished_days=days, quarantined_days=days))
    after = Seen(ledger)
    unfinished = {job for job in before.jobs if not before.is_finished(job)}
    assert unfinished <= set(after.jobs)
    for job in unfinished:
        if before.jobs[job].state not in FINISHED:
            assert before.about(job) <= set(after.instances)
    faults = [
        fault for fault in check_consistency(ledger, spool).faults if "missing" in fault or "no row knows it" in fault
    ]
    assert not faults
    limit = time.time() - days * DAY
    assert not [job for job in after.jobs if after.is_finished(job) and after.jobs[job].finished_at < limit]


def job(source: int, state: str, days: int, *needed: int, reports: tuple[str, ...] = ("stored",)) -> dict[str, Any]:
    return {"source": source, "needs": set(needed), "state": state, "days": days, "reports": list(reports)}


def instance(size: int, days: int) -> dict[str, Any]:
    return {"size": size, "days": days}


def test_it_stops_as_soon_as_there_is_room_and_says_what_went(ledger: Ledger, spool: Spool) -> None:
    fill(
        ledger,
        spool,
        [instance(100, 9), instance(1, 9), instance(100, 8), instance(1, 8), instance(100, 0)],
        [job(1, "done", 5, 0), job(3, "done", 6, 2)],
    )
    with capture_logs() as logged:
        removed = enforce_size_limit(ledger, spool, Retention(max_bytes=300))  # type: ignore[arg-type]
    # 322 bytes: the job that ended six days ago goes, with its report, its lesion object and its image.
    assert removed == DeletedForRoom(jobs=1, instances=2, reports=1, bytes=111)
    assert set(Seen(ledger).jobs) == {1}
    assert [line["event"] for line in logged] == ["work deleted to keep the size limit"]
    assert logged[0]["jobs"] == 1 and logged[0]["bytes"] == 111


def test_an_image_without_a_lesion_object_stays_a_day_and_then_goes_in_its_turn(ledger: Ledger, spool: Spool) -> None:
    fill(ledger, spool, [instance(10, 0), instance(10, 3), instance(10, 7)], [])
    with capture_logs() as logged:
        removed = enforce_size_limit(ledger, spool, Retention(max_bytes=1))  # type: ignore[arg-type]
    assert removed == DeletedForRoom(instances=2, bytes=20)
    assert set(Seen(ledger).instances) == {1}
    assert "no finished work is left to delete" in logged[-1]["event"] and logged[-1]["excess"] == 9


def test_many_go_in_several_transactions_and_still_oldest_first(
    ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.maintenance.retention.MAX_JOBS", 2)
    fill(
        ledger,
        spool,
        [instance(10, days) for days in (2, 9, 3, 8, 4, 7)],
        [job(0, "done", 1, reports=()), job(2, "failed", 5, reports=()), job(4, "quarantined", 6, reports=())],
    )
    # By end: unmarked 9, 8, 7 days ago, then jobs 6, 5 and 1 days ago.
    for left, gone in ((30, {2, 4, 6}), (20, {2, 4, 6, 5}), (10, {2, 4, 6, 5, 3})):
        enforce_size_limit(ledger, spool, Retention(max_bytes=left))  # type: ignore[arg-type]
        assert set(Seen(ledger).instances) == {1, 2, 3, 4, 5, 6} - gone


def test_the_limit_is_the_smaller_of_bytes_and_share(tmp_path: Path) -> None:
    assert size_limit(Retention(), tmp_path) is None
    assert size_limit(Retention(max_bytes="2MB"), tmp_path) == 2_000_000  # type: ignore[arg-type]
    stat = os.statvfs(tmp_path)
    total = stat.f_blocks * stat.f_frsize
    assert size_limit(Retention(max_disk_fraction=0.5), tmp_path) == pytest.approx(total / 2, abs=1)
    assert size_limit(Retention(max_disk_fraction=1.0, max_bytes="2MB"), tmp_path) == 2_000_000  # type: ignore[arg-type]
