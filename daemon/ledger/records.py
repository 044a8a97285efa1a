"""What the ledger hands out: one small frozen dataclass for each kind of row.

Times are seconds since the epoch (UTC); paths are relative to the spool directory. See `schema` for the
states.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Row

Record = TypeVar("Record")


@dataclass(frozen=True)
class Instance:
    """An instance that was received, in one version of its content."""

    id: int  # row id
    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str  # "" if it belongs to no study
    series_uid: str
    transfer_syntax_uid: str
    digest: str  # of the content: see `daemon.dicom.digest`
    size: int  # bytes of its file
    path: str  # of its file in the spool
    calling_ae: str  # AE title of the sender
    received_at: float
    state: str  # one of InstanceState
    times_received: int  # duplicates included


@dataclass(frozen=True)
class Job:
    """One lesion object under one bundle, as it was when it was read or claimed."""

    id: int  # row id, the number of the job
    instance_id: int  # row id of the lesion object
    source_uid: str  # SOP Instance UID of the lesion object
    bundle: str  # digest of the model bundle
    state: str  # one of JobState
    reason: str | None  # why it waits, failed or was quarantined
    owner: str | None  # id of the node that works on it
    revision: int  # raised whenever an input changes
    attempts: int  # how often work on it was begun, or (waiting) the archive asked for its images
    not_before: float  # when it may be claimed, or (waiting) the archive be asked again
    created_at: float
    complete_at: float | None  # when all that it needs was here
    finished_at: float | None
    result: Any  # JSON: what was classified; None before


@dataclass(frozen=True)
class JobInStudy(Job):
    """A job, and the study of its lesion object."""

    study_uid: str


@dataclass(frozen=True)
class MissingImage:
    """An instance that a waiting job needs and that is not here."""

    job_id: int
    attempts: int  # how often the archive was asked for it
    study_uid: str  # of the lesion object
    sop_instance_uid: str  # of the missing instance


@dataclass(frozen=True)
class OutboxItem:
    """A report on its way to the archive, or stored in it."""

    id: int  # row id
    job_id: int
    source_uid: str  # SOP Instance UID of the lesion object that it is about
    kind: str  # of report, as `reports.kinds` names it
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    path: str  # of its file in the spool
    size: int  # bytes of its file
    digest: str | None  # SHA-256 of the whole file; None for reports of the first schema
    state: str  # one of OutboxState
    status: int | None  # the archive's last DIMSE status or STOW-RS failure reason
    reason: str | None  # the last outcome in words
    owner: str | None  # id of the node that sends it or asks about it
    attempts: int  # how often it was sent, or could not be asked about
    next_attempt_at: float
    created_at: float
    stored_at: float | None
    commit_attempts: int  # how often the archive was asked to commit it, without success


@dataclass(frozen=True)
class NodeFacts:
    """What a node states of itself when it joins."""

    host: str
    pid: int
    process: str  # identity of the process on its machine: see `daemon.system.process_identity`
    address: str  # where it listens, as host:port
    bundle: str  # digest of its model bundle
    version: str  # of mammod
    lease_s: float


@dataclass(frozen=True)
class NodeRecord(NodeFacts):
    """A service process that shares the ledger. Its times are by the database's clock."""

    id: str
    started_at: float
    beat_at: float  # its last heartbeat
    silent_s: float  # seconds since its last heartbeat
    alive: bool  # whether its lease has not expired


@dataclass(frozen=True)
class FinishedJob:
    """A finished job that retention by size may delete."""

    id: int
    ended_at: float


@dataclass(frozen=True)
class UnneededInstance:
    """An instance that no job holds or needs; it counts as ended when it was received."""

    id: int
    ended_at: float
    path: str
    size: int


@dataclass(frozen=True)
class StoredFile:
    """A file in the spool: its path, and its size in bytes."""

    path: str
    size: int


def records(kind: type[Record], rows: Iterable[Row]) -> list[Record]:
    """Return each of `rows` as a `kind`, whose fields are the columns of the query."""
    return [kind(**row._mapping) for row in rows]


def record_or_none(kind: type[Record], row: Row | None) -> Record | None:
    """Return `row` as a `kind`; None stays None."""
    return None if row is None else kind(**row._mapping)
