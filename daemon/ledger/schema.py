"""The ledger's tables and the states that rows pass through. Migrations stand in `daemon/ledger/migrations`.

Times are seconds since the epoch (UTC), by the clock of the node that wrote them; those of `nodes` are by the
database's clock. Paths are relative to the spool directory. No column holds patient data.

Work that a node has claimed carries its id in `owner`: a running job, a report that it sends or asks about, a
duty that one node does at a time. A node whose lease expires loses its row and all that it owned
(`nodes.take_over`). Results that it delivers later are ignored, because every transition that ends work
compares the owner.

Instance:  current -> superseded (other content came under the same SOP Instance UID)
Job:       waiting -> ready -> running -> sending -> done
                                  |          `-> failed (the archive refuses the report for good) |-> done
                                  (nothing to classify, or nothing new to report) |-> ready (interrupted, or
                                  an input changed meanwhile) `-> quarantined (input cannot be used: see the
                                  reason; may have a report of it)
           any unfinished state -> superseded (the lesion object itself was replaced)
           done, failed, quarantined -> ready (an image was replaced, or an operator retries)
Outbox:    queued -> stored | failed;  failed -> queued (an operator retries)
           with storage commitment: queued -> committing (stored, not yet committed)
                                    -> stored | queued (sent again) | failed
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

UID = String(64)
NODE_ID = String(48)
ROW_ID = BigInteger().with_variant(Integer, "sqlite")


class SafeText(TypeDecorator[str]):
    """Text that may quote a peer's input, without what databases cannot store: NUL and lone surrogates."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Return `value` with replacement characters for what the database cannot store."""
        return value and value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class InstanceState(StrEnum):
    """Whether an instance holds the newest content of its SOP Instance UID."""

    CURRENT = "current"
    SUPERSEDED = "superseded"


class JobState(StrEnum):
    """How far a job has come; the module's docstring shows the transitions."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    SENDING = "sending"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"


class OutboxState(StrEnum):
    """How far a report has come on its way to the archive; the module's docstring shows the transitions."""

    QUEUED = "queued"
    COMMITTING = "committing"
    STORED = "stored"
    FAILED = "failed"


UNFINISHED = (JobState.WAITING, JobState.READY, JobState.RUNNING, JobState.SENDING)
# Reports that the archive has not taken, or not committed.
UNDELIVERED = (OutboxState.QUEUED, OutboxState.COMMITTING)


def _one_of(states: type[StrEnum]) -> CheckConstraint:
    allowed = ", ".join(f"'{state}'" for state in states)
    return CheckConstraint(f"state IN ({allowed})", name="state")


instances = Table(
    "instances",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("sop_instance_uid", UID, nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("study_uid", UID, nullable=False),
    Column("series_uid", UID, nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("path", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("times_received", Integer, nullable=False),
    UniqueConstraint("sop_instance_uid", "digest"),
    _one_of(InstanceState),
)
Index("ix_instances_received_at", instances.c.received_at)

jobs = Table(
    "jobs",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("instance_id", ROW_ID, ForeignKey("instances.id"), nullable=False),
    Column("source_uid", UID, nullable=False),
    Column("bundle", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", SafeText),
    Column("owner", NODE_ID),  # the node that works on it
    # Raised whenever an input changes: work that was begun under an older revision is repeated.
    Column("revision", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("complete_at", Float),
    Column("finished_at", Float),
    Column("result", JSON),
    UniqueConstraint("instance_id", "bundle"),
    _one_of(JobState),
)
Index("ix_jobs_state_not_before", jobs.c.state, jobs.c.not_before)
Index("ix_jobs_source_uid", jobs.c.source_uid)

needs = Table(
    "needs",
    metadata,
    Column("job_id", ROW_ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sop_instance_uid", UID, primary_key=True),
)
Index("ix_needs_sop_instance_uid", needs.c.sop_instance_uid)

outbox = Table(
    "outbox",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("job_id", ROW_ID, ForeignKey("jobs.id"), nullable=False),
    Column("source_uid", UID, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("study_uid", UID, nullable=False),
    Column("series_uid", UID, nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(64)),  # sha256 of the whole file; unknown for reports of the first schema
    Column("state", String(16), nullable=False),
    Column("status", Integer),
    Column("reason", SafeText),
    Column("owner", NODE_ID),  # the node that sends it or asks about it
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("stored_at", Float),
    # How often the archive was asked to commit it without the outcome "committed".
    Column("commit_attempts", Integer, nullable=False, server_default="0"),
    _one_of(OutboxState),
)
Index("ix_outbox_state_next_attempt_at", outbox.c.state, outbox.c.next_attempt_at)
Index("ix_outbox_source_uid", outbox.c.source_uid)
Index("ix_outbox_job_id", outbox.c.job_id)

# Which reports each storage commitment request named; a late answer to an earlier request counts as well.
commitments = Table(
    "commitments",
    metadata,
    Column("transaction_uid", UID, primary_key=True),
    Column("outbox_id", ROW_ID, ForeignKey("outbox.id", ondelete="CASCADE"), primary_key=True),
)
Index("ix_commitments_outbox_id", commitments.c.outbox_id)

# The service processes that share the ledger. A process whose lease expired rejoins under another id.
nodes = Table(
    "nodes",
    metadata,
    Column("id", NODE_ID, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    # Identity of the process, by which others on its machine see whether it lives
    # (`daemon.system.process_identity`).
    Column("process", String(128), nullable=False),
    Column("address", String(300), nullable=False),  # where it listens, as host:port
    Column("bundle", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("lease_s", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("beat_at", Float, nullable=False),
)

# Work that one node at a time does for all.
duties = Table(
    "duties",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("owner", NODE_ID, nullable=False),
)
