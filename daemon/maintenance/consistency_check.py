"""`mammod check --deep`: ledger and spool against each other, every file hashed again, every state against what it claims."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from sqlalchemy import Connection, Row, select, text

from daemon.dicom.digest import has_digest
from daemon.ledger import Ledger, jobs
from daemon.ledger.jobs import newest_reports
from daemon.ledger.schema import InstanceState, JobState, OutboxState
from daemon.ledger.schema import instances as instance_table
from daemon.ledger.schema import jobs as job_table
from daemon.ledger.schema import outbox as outbox_table
from daemon.storage.spool import Spool

# A running service writes a file before its row: only a file that nothing touched for so long has lost its row.
SETTLED_S = 60.0


@dataclass
class ConsistencyReport:
    """What was looked at, and `faults`: what is wrong, in plain words, each with what to do."""

    instances: int = 0
    reports: int = 0
    jobs: int = 0
    bytes_hashed: int = 0
    faults: list[str] = field(default_factory=list)


def check_consistency(ledger: Ledger, spool: Spool) -> ConsistencyReport:
    """Walk ledger and spool, both ways. May run beside the service: what changes meanwhile is looked at again."""
    began = time.time()
    entries = spool.entries()
    with ledger.read() as connection:
        found = ConsistencyReport(faults=list(_database_faults(connection)))
        instances = connection.execute(select(instance_table)).all()
        reports = connection.execute(select(outbox_table)).all()
        job_rows = connection.execute(select(job_table)).all()
        complete = set(jobs.complete_but_waiting(connection))
    found.instances, found.reports, found.jobs = len(instances), len(reports), len(job_rows)
    for row in (*instances, *reports):
        size, faults = file_faults(spool, row)
        found.bytes_hashed += size
        # Retention may have removed row and file since the rows were read.
        if faults and _still_there(ledger, row):
            found.faults += faults
    known = {row.path for row in (*instances, *reports)}
    for entry in entries:
        if entry.path in known or began - entry.modified <= SETTLED_S:
            continue
        modified = spool.modified(entry.path)
        if modified is not None and began - modified > SETTLED_S:
            remedy = "restart the service, which removes such files"
            if spool.store is not None:
                remedy = "a running service removes such files within two hours"
            found.faults.append(f"file {entry.path}: no row knows it; {remedy}")
    found.faults += _instance_faults(instances)
    found.faults += _job_faults(job_rows, instances, reports, complete)
    return found


def _database_faults(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return  # other databases check themselves
    for (said,) in connection.execute(text("PRAGMA integrity_check")):
        if said != "ok":
            yield f"ledger: SQLite's integrity check says: {said}; stop the service and restore the ledger"
    for broken in connection.execute(text("PRAGMA foreign_key_check")):
        yield f"ledger: a row of {broken[0]} refers to a row of {broken[2]} that is not there; restore the ledger"


def file_faults(spool: Spool, row: Row) -> tuple[int, list[str]]:
    """Bytes read, and what is wrong with the file of an instance's or report's row."""
    with spool.as_stored(row.path) as path:
        return _path_faults(path, row)


def _path_faults(path: Path, row: Row) -> tuple[int, list[str]]:
    is_report = hasattr(row, "job_id")
    name = f"{'report' if is_report else 'instance'} {row.sop_instance_uid} (row {row.id})"
    again = "run its job again with `mammod jobs retry`" if is_report else "have its sender send it again"
    try:
        size = path.stat().st_size
        if size != row.size:
            return 0, [f"{name}: its file {row.path} has {size} bytes and the ledger says {row.size}; {again}"]
        whole = _is_whole_report(path, row.digest) if is_report else has_digest(path, row.digest)
        if not whole:
            return size, [f"{name}: the content of its file {row.path} is not what was written; {again}"]
        uid = str(dcmread(path, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID", ""))
        if uid != row.sop_instance_uid:
            return size, [f"{name}: its file {row.path} holds SOP Instance UID {uid or 'none'}; {again}"]
    except FileNotFoundError:
        return 0, [f"{name}: its file {row.path} is missing; {again}"]
    except OSError as error:
        return 0, [f"{name}: its file {row.path} cannot be read ({error.strerror}); run as the service's user"]
    except Exception as error:  # pydicom raises many kinds over broken files
        return 0, [f"{name}: its file {row.path} is not DICOM any more ({type(error).__name__}); {again}"]
    return size, []


def _still_there(ledger: Ledger, row: Row) -> bool:
    table = outbox_table if hasattr(row, "job_id") else instance_table
    with ledger.read() as connection:
        return connection.execute(select(table.c.id).where(table.c.id == row.id)).one_or_none() is not None


def _is_whole_report(path: Path, sha256: str | None) -> bool:
    with path.open("rb") as file:
        return sha256 in (None, hashlib.file_digest(file, "sha256").hexdigest())


def _instance_faults(instances: Sequence[Row]) -> list[str]:
    current: dict[str, int] = {}
    for row in instances:
        current[row.sop_instance_uid] = current.get(row.sop_instance_uid, 0) + (row.state == InstanceState.CURRENT)
    return [
        f"instance {uid}: {number} of its versions are marked current, only one may be; send it again"
        for uid, number in current.items()
        if number > 1  # none: retention took the current one, and keeps an older one for its quarantined job
    ]


def _job_faults(
    job_rows: Sequence[Row], instances: Sequence[Row], reports: Sequence[Row], complete: set[int]
) -> Iterator[str]:
    """What a job's state claims about its reports and reason, and does not hold."""
    here = {row.id for row in instances}
    reports_of: dict[int, list[Row]] = {}
    for report in reports:
        reports_of.setdefault(report.job_id, []).append(report)
    for job in job_rows:
        own = reports_of.get(job.id, [])
        states = {report.state for report in newest_reports(own)}
        unsent = [report for report in own if report.state in (OutboxState.QUEUED, OutboxState.COMMITTING)]
        name = f"job {job.id} ({job.state})"
        if job.instance_id not in here:
            yield f"{name}: its lesion object has no row; have it sent again"
        if job.state == JobState.DONE and not states and not job.reason:
            yield f"{name}: it is done and has neither a report nor a reason for none; have its lesion object sent again"
        if job.state == JobState.DONE and states - {OutboxState.STORED}:
            yield f"{name}: it is done and its report is {', '.join(sorted(states))}, not stored; `mammod jobs show {job.id}`"
        if job.state == JobState.SENDING and not unsent:
            yield f"{name}: it is sending and no report of it waits for the archive; restart the service"
        if job.state == JobState.FAILED and OutboxState.FAILED not in states:
            yield f"{name}: it failed and no report of it was refused; `mammod jobs retry {job.id}`"
        if job.state == JobState.QUARANTINED and not job.reason:
            yield f"{name}: it is quarantined without a reason; `mammod jobs retry {job.id}`"
        if job.id in complete:
            yield f"{name}: it waits although all that it needs is here; restart the service"
