"""What Prometheus is told at /metrics: counts of this process since its start, and the state of things when it asks.

The counts come from what is published (`daemon.events.bus`, `daemon.events.timings`); the state is read when Prometheus
asks, most of it from the ledger. Labels have few values, all of them ours: no AE title, no UID, nothing of a patient.
docs/operations.md names every metric, and a test holds that table equal to what is served.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from pydicom import uid
from sqlalchemy.exc import SQLAlchemyError

import config
from daemon.dicom.sop_classes import REPORT_CLASSES, SEGMENTATION_CLASSES
from daemon.events.bus import (
    AssociationAccepted,
    BatchClassified,
    DeletedForRoom,
    Event,
    InstanceAccepted,
    InstanceAnswered,
    JobAttempted,
    JobOutcome,
    ReportSent,
    WorkerKind,
    WorkerRestarted,
)
from daemon.events.outcomes import Arrival, Rejection, RejectionKind, StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming
from daemon.ledger import Ledger, jobs, nodes, outbox
from daemon.ledger.schema import OutboxState
from daemon.ledger.summary import UrgentWork, urgent_work
from daemon.monitoring.archive_health import Health
from daemon.reports.registry import KINDS
from daemon.system.tls import Expiry
from model.bundle import Bundle

STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
TURNAROUND_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
REMOVED_FOR_ROOM = ("jobs", "instances", "reports")  # of `DeletedForRoom`
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # ROIs
MAMMOGRAMS = (
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.BreastTomosynthesisImageStorage,
)

log = structlog.get_logger()


def kind_of(sop_class_uid: str) -> str:
    """What an instance is to an operator, by its SOP Class."""
    if sop_class_uid in MAMMOGRAMS:
        return "mammogram"
    if sop_class_uid in SEGMENTATION_CLASSES:
        return "segmentation"
    return "structured_report" if sop_class_uid.startswith(REPORT_CLASSES) else "other"


class _Live(Collector):
    def __init__(self, ask: Callable[[], Iterable[Metric]]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        return self._ask()

    def describe(self) -> Iterable[Metric]:
        return []  # or registering would ask for everything once


class Metrics:
    """The registry and its counters; `hear` and `hear_stage` are to be told what happens. Thread-safe."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # a second series beside each counter that nobody asked for
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mammod_{name}", text, labels, registry=registry)

        self._accepted = counter("associations_accepted", "Associations that peers requested and were given.")
        self._rejected = counter("associations_rejected", "Callers not let in, by reason.", "reason")
        self._answered = counter(
            "instances_received", "C-STORE requests answered, by kind of instance and DICOM status.", "kind", "status"
        )
        self._arrived = counter(
            "instances_accepted", "Instances made durable and recorded, by what they were to the ledger.", "arrival"
        )
        self._bytes = counter("received_bytes", "Bytes of the instances accepted.")
        self._worked = counter("jobs_worked", "Attempts at jobs, by what came of them.", "outcome")
        self._lesions = counter("lesions_classified", "Lesions classified.")
        self._sent = counter("reports_sent", "Attempts to store a report, by its kind and outcome.", "kind", "outcome")
        self._removed = counter("removed_for_room", "What retention by size removed.", "what")
        self._removed_bytes = counter("removed_for_room_bytes", "Bytes of the files that went with it.")
        self._restarts = counter("worker_restarts", "Processes that died or hung and were replaced.", "worker")
        self._cpu = counter("stage_cpu_seconds", "CPU seconds spent on a stage, by all processes.", "stage")
        self._stages = Histogram(
            "mammod_stage_seconds",
            "Seconds that one passage of a stage took, its waits included.",
            ["stage"],
            registry=registry,
            buckets=STAGE_BUCKETS,
        )
        self._turnaround = Histogram(
            "mammod_job_turnaround_seconds",
            "Seconds from when all of a job was here to its reports in the outbox.",
            registry=registry,
            buckets=TURNAROUND_BUCKETS,
        )
        self._batches = Histogram(
            "mammod_classifier_batch_rois",
            "ROIs that the classifier took at once.",
            registry=registry,
            buckets=BATCH_BUCKETS,
        )
        self._name_all()

    def _name_all(self) -> None:
        """Have every series there from the start, at 0: the rate of one that appears with its first event starts too late."""
        for reason in RejectionKind:
            self._rejected.labels(reason.value)
        for arrival in Arrival:
            self._arrived.labels(arrival.value)
        for outcome in JobOutcome:
            self._worked.labels(outcome.value)
        for kind in KINDS:
            for sent in StoreOutcomeKind:
                self._sent.labels(kind, sent.value)
        for worker in WorkerKind:
            self._restarts.labels(worker.value)
        for what in REMOVED_FOR_ROOM:
            self._removed.labels(what)
        for stage in Stage:
            self._stages.labels(stage.value)
            self._cpu.labels(stage.value)

    def hear(self, event: Event) -> None:
        match event:
            case AssociationAccepted():
                self._accepted.inc()
            case Rejection():
                self._rejected.labels(event.kind.value).inc()
            case InstanceAnswered():
                self._answered.labels(kind_of(event.sop_class_uid), f"{event.status:04X}").inc()
            case InstanceAccepted():
                self._arrived.labels(event.arrival.value).inc()
                self._bytes.inc(event.size)
            case JobAttempted():
                self._worked.labels(event.outcome.value).inc()
                self._lesions.inc(event.lesions)
                if event.seconds is not None:
                    self._turnaround.observe(event.seconds)
            case BatchClassified():
                self._batches.observe(event.rois)
            case DeletedForRoom():
                for what in REMOVED_FOR_ROOM:
                    self._removed.labels(what).inc(getattr(event, what))
                self._removed_bytes.inc(event.bytes)
            case WorkerRestarted():
                self._restarts.labels(event.worker.value).inc()
            case ReportSent():
                self._sent.labels(event.kind, event.outcome.value).inc()

    def hear_stage(self, took: StageTiming) -> None:
        if took.seconds is not None:
            self._stages.labels(took.stage.value).observe(took.seconds)
        self._cpu.labels(took.stage.value).inc(took.cpu_seconds)

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Ask `collect` for more at each scrape."""
        self.registry.register(_Live(collect))

    def render(self, accept: str) -> tuple[bytes, str]:
        """What is served, and its content type, in the format that the Accept header `accept` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


@dataclass(frozen=True)
class WorkerState:
    alive: int
    expected: int


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Now:
    """The state of things when Prometheus asks, but for what stands in the ledger.

    `queues` are those of processes, by name; `beats` the seconds since each loop was last alive; `audit` messages delivered,
    waiting and lost, None without an audit trail; `disk` None where it cannot be looked at, `spool_bytes` until it was counted.
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


def collect(now: Now, ledger: Ledger) -> Iterator[Metric]:
    """The state as Prometheus' metrics. A ledger that cannot be read takes its own away and no other."""
    yield _gauge("ready", "1 where associations are accepted, else 0.", now.ready)
    yield _gauge("associations_open", "Associations open now.", now.associations_open)
    yield _gauge(
        "connections_waiting", "Connections that have not asked for an association yet.", now.connections_waiting
    )
    yield _by(
        "workers_alive",
        "Processes that are there.",
        "worker",
        {worker.value: state.alive for worker, state in now.workers.items()},
    )
    yield _by(
        "workers_expected",
        "Processes that should be there.",
        "worker",
        {worker.value: state.expected for worker, state in now.workers.items()},
    )
    yield _by("heartbeat_age_seconds", "Seconds since a loop of the service was last alive.", "loop", now.beats)
    yield from _archive(now.archive)
    if now.disk is not None:
        yield _gauge("spool_free_bytes", "Free on the spool's disk.", now.disk.free)
        yield _gauge("spool_disk_bytes", "Size of the spool's disk.", now.disk.total)
    yield _gauge("spool_min_free_bytes", "With less free than this, senders are told to come back.", now.min_free)
    if now.spool_bytes is not None:
        yield _gauge("spool_bytes", "Instances and reports in the spool, counted every ten minutes.", now.spool_bytes)
    yield _by(
        "certificate_expiry_timestamp_seconds",
        "When the certificate of a file that ends first does.",
        "certificate",
        {one.setting: one.ends.timestamp() for one in now.certificates},
    )
    yield _info("bundle", "The network that classifies.", _bundle(now))
    yield _info("build", "What runs.", {"version": config.__version__, "python": platform.python_version()})
    if now.audit is not None:
        audited = CounterMetricFamily("mammod_audit_messages", "Audit messages, by outcome.", labels=["outcome"])
        for outcome in ("delivered", "lost"):
            audited.add_metric([outcome], now.audit[outcome])
        yield audited
        yield _gauge("audit_messages_waiting", "Audit messages that no receiver has taken yet.", now.audit["waiting"])
    yield from _ledger(now, ledger)


def _archive(archive: Health) -> Iterator[Metric]:
    if archive.up is not None:
        yield _gauge("archive_up", "1 where the archive answered when it was last asked for anything.", archive.up)
    yield _gauge(
        "archive_failures_in_a_row", "Attempts without an answer since the last one.", archive.failures_in_a_row
    )
    if archive.last_answer is not None:
        yield _gauge(
            "archive_last_answer_timestamp_seconds", "When the archive last answered anything.", archive.last_answer
        )
    if archive.last_stored is not None:
        yield _gauge("archive_last_stored_timestamp_seconds", "When it last stored a report.", archive.last_stored)


def _bundle(now: Now) -> dict[str, str]:
    manifest = now.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": now.bundle.digest[:12],
        "trained": "true" if manifest.trained else "false",
        "engine": now.engine,
    }


def _ledger(now: Now, ledger: Ledger) -> Iterator[Metric]:
    try:
        with ledger.read() as connection:
            urgent = urgent_work(connection)
            job_counts, report_counts = jobs.by_state(connection), outbox.by_state(connection)
            alive = [bool(row.alive) for row in nodes.all(connection)]
    except SQLAlchemyError as error:
        log.error("the ledger cannot be read for metrics", error=type(error).__name__)
        yield _gauge("ledger_up", "1 where the ledger could be read for these metrics.", False)
        yield _by("queue_depth", _QUEUES, "queue", now.queues)
        return
    yield _gauge("ledger_up", "1 where the ledger could be read for these metrics.", True)
    yield _by("jobs", "Jobs in the ledger, by state.", "state", job_counts)
    yield _by("reports", "Reports in the ledger, by state.", "state", report_counts)
    node_counts = {"alive": alive.count(True), "silent": alive.count(False)}
    yield _by("nodes", "Nodes that share the ledger, by whether their lease runs.", "state", node_counts)
    yield _by("job_oldest_age_seconds", "Age of the job longest in a state; 0: there is none.", "state", ages(urgent))
    of_ledger = {"outbox": OutboxState.QUEUED, "commitment": OutboxState.COMMITTING}
    depths = {name: urgent.reports[state].count for name, state in of_ledger.items()}
    yield _by("queue_depth", _QUEUES, "queue", {**now.queues, **depths})
    oldest = {name: age(urgent.reports[state].since) for name, state in of_ledger.items()}
    yield _by("queue_oldest_age_seconds", "Age of the oldest report in a queue; 0: there is none.", "queue", oldest)


_QUEUES = "What waits: objects for a decoder, ROIs for the classifier, reports for the archive or for its promise."


def ages(urgent: UrgentWork) -> dict[str, float]:
    """The age in seconds of the job that has been longest in each state."""
    return {state.value: age(found.since) for state, found in urgent.jobs.items()}


def age(since: float | None) -> float:
    """Seconds since then; 0 for nothing, and where the clock was set back since."""
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
