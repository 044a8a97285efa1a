"""`mammod check --deep`: compare ledger and spool, hash every file again, check what every state claims."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from sqlalchemy import Connection, text

from daemon.dicom.digest import has_digest
from daemon.ledger import Ledger, instances, jobs, outbox
from daemon.ledger.jobs import newest_reports
from daemon.ledger.records import Instance, Job, OutboxItem
from daemon.ledger.schema import UNDELIVERED, InstanceState, JobState, OutboxState
from daemon.storage.spool import Spool

# A running service writes a file before its row: only a file that was not modified for this long has lost its
# row.
ORPHAN_AFTER_S = 60.0


@dataclass
class ConsistencyReport:
    """How much was checked, and what is wrong."""

    instances: int = 0
    reports: int = 0
    jobs: int = 0
    bytes_hashed: int = 0
    faults: list[str] = field(default_factory=list)  # in plain words, each with what to do


def check_consistency(ledger: Ledger, spool: Spool) -> ConsistencyReport:
    """Compare ledger and spool, both ways.

    May run beside the service: what changes meanwhile is checked again.
    """
    began = time.time()
    entries = spool.entries()
    with ledger.read() as connection:
        found = ConsistencyReport(faults=list(_database_faults(connection)))
        every_instance = instances.every(connection)
        reports = outbox.every(connection)
        every_job = jobs.every(connection)
        complete = set(jobs.complete_but_waiting(connection))
    found.instances, found.reports, found.jobs = len(every_instance), len(reports), len(every_job)
    with_files: list[Instance | OutboxItem] = [*every_instance, *reports]
    for record in with_files:
        size, faults = file_faults(spool, record)
        found.bytes_hashed += size
        # Retention may have deleted row and file since the rows were read.
        if faults and _is_known(ledger, record):
            found.faults += faults
    known = {record.path for record in with_files}
    for entry in entries:
        if entry.path in known or began - entry.modified <= ORPHAN_AFTER_S:
            continue
        modified = spool.modified(entry.path)
        if modified is not None and began - modified > ORPHAN_AFTER_S:
            remedy = "restart the service, which deletes such files"
            if spool.store is not None:
                remedy = "a running service deletes such files within two hours"
            found.faults.append(f"file {entry.path}: no row knows it; {remedy}")
    found.faults += _instance_faults(every_instance)
    found.faults += _job_faults(every_job, every_instance, reports, complete)
    return found


def _database_faults(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return  # other databases check themselves
    for (result,) in connection.execute(text("PRAGMA integrity_check")):
        if result != "ok":
            yield f"ledger: SQLite's integrity check says: {result}; stop the service and restore the ledger"
    for broken in connection.execute(text("PRAGMA foreign_key_check")):
        yield f"ledger: a row of {broken[0]} refers to a row of {broken[2]} that is not there; restore the ledger"


def file_faults(spool: Spool, record: Instance | OutboxItem) -> tuple[int, list[str]]:
    """Return the bytes read, and what is wrong with the file of an instance or report."""
    with spool.as_stored(record.path) as path:
        return _path_faults(path, record)


def _path_faults(path: Path, record: Instance | OutboxItem) -> tuple[int, list[str]]:
    is_report = isinstance(record, OutboxItem)
    name = f"{'report' if is_report else 'instance'} {record.sop_instance_uid} (row {record.id})"
    again = "run its job again with `mammod jobs retry`" if is_report else "have its sender send it again"
    try:
        size = path.stat().st_size
        if size != record.size:
            return 0, [f"{name}: its file {record.path} has {size} bytes and the ledger says {record.size}; {again}"]
        if not _has_content(path, record):
            return size, [f"{name}: the content of its file {record.path} is not what was written; {again}"]
        uid = str(dcmread(path, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID", ""))
        if uid != record.sop_instance_uid:
            return size, [f"{name}: its file {record.path} holds SOP Instance UID {uid or 'none'}; {again}"]
    except FileNotFoundError:
        return 0, [f"{name}: its file {record.path} is missing; {again}"]
    except OSError as error:
        return 0, [f"{name}: its file {record.path} cannot be read ({error.strerror}); run as the service's user"]
    except Exception as error:  # pydicom raises many kinds over broken files
        return 0, [f"{name}: its file {record.path} is not DICOM any more ({type(error).__name__}); {again}"]
    return size, []


def _is_known(ledger: Ledger, record: Instance | OutboxItem) -> bool:
    with ledger.read() as connection:
        if isinstance(record, OutboxItem):
            return outbox.is_known(connection, record.id)
        return instances.is_known(connection, record.id)


def _has_content(path: Path, record: Instance | OutboxItem) -> bool:
    """Return whether the file holds the content that was recorded."""
    if isinstance(record, Instance):
        return has_digest(path, record.digest)
    with path.open("rb") as file:
        return record.digest in (None, hashlib.file_digest(file, "sha256").hexdigest())


def _instance_faults(every_instance: Sequence[Instance]) -> list[str]:
    current: dict[str, int] = {}
    for instance in every_instance:
        uid = instance.sop_instance_uid
        current[uid] = current.get(uid, 0) + (instance.state == InstanceState.CURRENT)
    return [
        f"instance {uid}: {number} of its versions are marked current, only one may be; send it again"
        for uid, number in current.items()
        if number > 1  # none: retention deleted the current one, and keeps an older one for its quarantined job
    ]


def _job_faults(
    every_job: Sequence[Job], every_instance: Sequence[Instance], reports: Sequence[OutboxItem], complete: set[int]
) -> Iterator[str]:
    """Yield what a job's state claims about its reports and reason, and is not so."""
    here = {instance.id for instance in every_instance}
    reports_of: dict[int, list[OutboxItem]] = {}
    for report in reports:
        reports_of.setdefault(report.job_id, []).append(report)
    for job in every_job:
        own = reports_of.get(job.id, [])
        states = {report.state for report in newest_reports(own)}
        unsent = [report for report in own if report.state in UNDELIVERED]
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
