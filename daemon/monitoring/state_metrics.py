"""Report the service's present state as Prometheus metrics, read at each scrape, mostly from the ledger.

Counts of what happened since the start are in `daemon.monitoring.metrics`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError

import config
from daemon.events.bus import WorkerKind
from daemon.ledger import Ledger, jobs, nodes, outbox
from daemon.ledger.schema import OutboxState
from daemon.ledger.summary import UrgentWork, urgent_work
from daemon.monitoring.archive_health import Health
from daemon.system.tls import Expiry
from model.bundle import Bundle

log = structlog.get_logger()


@dataclass(frozen=True)
class WorkerState:
    """Processes of one kind: how many are alive and how many should be."""

    alive: int
    expected: int


@dataclass(frozen=True)
class Disk:
    """Size and free space of a disk, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class ServiceState:
    """The state of the service at a scrape, without what is in the ledger.

    `queues` holds the queue length of each kind of process; `beats` the seconds since each loop's last
    heartbeat; `audit` the messages delivered, waiting and lost, None without an audit trail. `disk` is None
    if it cannot be read, `spool_bytes` until they are first counted.
    """

    ready: bool
    associations_open: int
    connections_waiting: int
    queues: Mapping[str, int]
    workers: Mapping[WorkerKind, WorkerState]
    beats: Mapping[str, float]
    archive: Health
    disk: Disk | None
    min_free: int
    spool_bytes: int | None
    certificates: Iterable[Expiry]
    bundle: Bundle
    engine: str
    audit: Mapping[str, int] | None


def collect(now: ServiceState, ledger: Ledger) -> Iterator[Metric]:
    """Yield the state as Prometheus metrics; an unreadable ledger drops its own metrics only."""
    yield _gauge("ready", "1 if associations are accepted, else 0.", now.ready)
    yield _gauge("associations_open", "Open associations.", now.associations_open)
    yield _gauge(
        "connections_waiting", "Connections that have not requested an association yet.", now.connections_waiting
    )
    yield _by(
        "workers_alive",
        "Processes that are alive.",
        "worker",
        {worker.value: state.alive for worker, state in now.workers.items()},
    )
    yield _by(
        "workers_expected",
        "Processes that should be alive.",
        "worker",
        {worker.value: state.expected for worker, state in now.workers.items()},
    )
    yield _by("heartbeat_age_seconds", "Seconds since a loop's last heartbeat.", "loop", now.beats)
    yield from _archive(now.archive)
    if now.disk is not None:
        yield _gauge("spool_free_bytes", "Free bytes on the spool's disk.", now.disk.free)
        yield _gauge("spool_disk_bytes", "Size of the spool's disk.", now.disk.total)
    yield _gauge("spool_min_free_bytes", "With less free space than this, instances are refused.", now.min_free)
    if now.spool_bytes is not None:
        yield _gauge(
            "spool_bytes", "Bytes of instances and reports in the spool, counted every ten minutes.", now.spool_bytes
        )
    yield _by(
        "certificate_expiry_timestamp_seconds",
        "When the first certificate in the file expires.",
        "certificate",
        {expiry.setting: expiry.ends.timestamp() for expiry in now.certificates},
    )
    yield _info("bundle", "The bundle in use.", _bundle(now))
    yield _info(
        "build", "Versions of mammod and Python.", {"version": config.__version__, "python": platform.python_version()}
    )
    if now.audit is not None:
        audited = CounterMetricFamily("mammod_audit_messages", "Audit messages, by outcome.", labels=["outcome"])
        for outcome in ("delivered", "lost"):
            audited.add_metric([outcome], now.audit[outcome])
        yield audited
        yield _gauge("audit_messages_waiting", "Audit messages not yet delivered.", now.audit["waiting"])
    yield from _ledger(now, ledger)


def _archive(archive: Health) -> Iterator[Metric]:
    if archive.up is not None:
        yield _gauge("archive_up", "1 if the archive answered the last request.", archive.up)
    yield _gauge(
        "archive_failures_in_a_row", "Requests without an answer since the last answer.", archive.failures_in_a_row
    )
    if archive.last_answer is not None:
        yield _gauge(
            "archive_last_answer_timestamp_seconds", "When the archive last answered any request.", archive.last_answer
        )
    if archive.last_stored is not None:
        yield _gauge(
            "archive_last_stored_timestamp_seconds", "When the archive last stored a report.", archive.last_stored
        )


def _bundle(now: ServiceState) -> dict[str, str]:
    manifest = now.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": now.bundle.digest[:12],
        "trained": "true" if manifest.trained else "false",
        "engine": now.engine,
    }


def _ledger(now: ServiceState, ledger: Ledger) -> Iterator[Metric]:
    try:
        with ledger.read() as connection:
            urgent = urgent_work(connection)
            job_counts, report_counts = jobs.by_state(connection), outbox.by_state(connection)
            alive = [bool(row.alive) for row in nodes.all(connection)]
    except SQLAlchemyError as error:
        log.error("ledger not readable for metrics", error=type(error).__name__)
        yield _gauge("ledger_up", "1 if the ledger could be read for these metrics.", False)
        yield _by("queue_depth", _QUEUES, "queue", now.queues)
        return
    yield _gauge("ledger_up", "1 if the ledger could be read for these metrics.", True)
    yield _by("jobs", "Jobs in the ledger, by state.", "state", job_counts)
    yield _by("reports", "Reports in the ledger, by state.", "state", report_counts)
    node_counts = {"alive": alive.count(True), "silent": alive.count(False)}
    yield _by("nodes", "Nodes that share the ledger, by whether their lease is valid.", "state", node_counts)
    yield _by("job_oldest_age_seconds", "Age of the oldest job in a state; 0 if there is none.", "state", ages(urgent))
    of_ledger = {"outbox": OutboxState.QUEUED, "commitment": OutboxState.COMMITTING}
    depths = {name: urgent.reports[state].count for name, state in of_ledger.items()}
    yield _by("queue_depth", _QUEUES, "queue", {**now.queues, **depths})
    oldest = {name: age(urgent.reports[state].since) for name, state in of_ledger.items()}
    yield _by("queue_oldest_age_seconds", "Age of the oldest report in a queue; 0 if there is none.", "queue", oldest)


_QUEUES = "Objects waiting for a decoder, ROIs for the classifier, reports for the archive or its commitment."


def ages(urgent: UrgentWork) -> dict[str, float]:
    """Return the age in seconds of the oldest job in each state."""
    return {state.value: age(found.since) for state, found in urgent.jobs.items()}


def age(since: float | None) -> float:
    """Return the seconds since `since`; 0 if it is None or in the future (the clock was set back)."""
    return 0.0 if since is None else max(0.0, time.time() - since)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mammod_{name}", text, value=float(value))


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"mammod_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    return InfoMetricFamily(f"mammod_{name}", text, value=dict(labels))
