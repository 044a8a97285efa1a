"""Count events for /metrics: totals of this process since its start.

The counts come from published events (`daemon.events.bus`, `daemon.events.timings`); what is read at each
scrape is in `daemon.monitoring.state_metrics`. Labels have a few fixed values: no AE title, no UID,
no patient data. docs/reference/metrics.md lists every metric; a test compares the list with what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from pydicom import uid

from daemon.dicom.sop_classes import SEGMENTATION_CLASSES, SR_CLASS_PREFIX
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
from daemon.reports.registry import KINDS

STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
TURNAROUND_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
EVICTED = ("jobs", "instances", "reports")  # fields of `DeletedForRoom`
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # ROIs
MAMMOGRAMS = (
    uid.DigitalMammographyXRayImageStorageForPresentation,
    uid.DigitalMammographyXRayImageStorageForProcessing,
    uid.BreastTomosynthesisImageStorage,
)

# Old name -> new name of counters; both are served until 0.3. CHANGELOG.md has the same table.
RENAMED = {
    "mammod_jobs_worked": "mammod_job_attempts",
    "mammod_removed_for_room": "mammod_evicted",
    "mammod_removed_for_room_bytes": "mammod_evicted_bytes",
}


def kind_of(sop_class_uid: str) -> str:
    """Return the kind of an instance by its SOP Class, as operators see it."""
    if sop_class_uid in MAMMOGRAMS:
        return "mammogram"
    if sop_class_uid in SEGMENTATION_CLASSES:
        return "segmentation"
    return "structured_report" if sop_class_uid.startswith(SR_CLASS_PREFIX) else "other"


class _ScrapeCollector(Collector):
    """Metrics that a function returns at each scrape."""

    def __init__(self, scrape: Callable[[], Iterable[Metric]]) -> None:
        self._scrape = scrape

    def collect(self) -> Iterable[Metric]:
        return self._scrape()

    def describe(self) -> Iterable[Metric]:
        return []  # without it, registering would call `scrape` once


class _OldNames(Collector):
    """The counters of `RENAMED` once more under their old names."""

    def __init__(self, counters: Iterable[Counter]) -> None:
        self._counters = list(counters)

    def collect(self) -> Iterable[Metric]:
        metrics = [metric for counter in self._counters for metric in counter.collect()]
        for old, new in RENAMED.items():
            for metric in metrics:
                if metric.name == new:
                    renamed = Metric(old, f"Deprecated: the old name of {new}_total.", metric.type)
                    for sample in metric.samples:
                        renamed.add_sample(sample.name.replace(new, old, 1), sample.labels, sample.value)
                    yield renamed


class Metrics:
    """The registry and its counters; `record` and `record_stage` take events and timings. Thread-safe."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # no *_created series beside each counter
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"mammod_{name}", text, labels, registry=registry)

        self._accepted = counter("associations_accepted", "Associations accepted.")
        self._rejected = counter("associations_rejected", "Associations rejected, by reason.", "reason")
        self._answered = counter(
            "instances_received", "C-STORE requests answered, by kind of instance and DICOM status.", "kind", "status"
        )
        self._arrived = counter(
            "instances_accepted", "Instances made durable and recorded: new, duplicate or changed.", "arrival"
        )
        self._bytes = counter("received_bytes", "Bytes of accepted instances.")
        self._attempts = counter("job_attempts", "Attempts at jobs, by outcome.", "outcome")
        self._lesions = counter("lesions_classified", "Lesions classified.")
        self._sent = counter("reports_sent", "Attempts to store a report, by its kind and outcome.", "kind", "outcome")
        self._evicted = counter("evicted", "Deleted early to keep the spool within its size limit.", "what")
        self._evicted_bytes = counter("evicted_bytes", "Bytes of the files deleted early.")
        self._restarts = counter("worker_restarts", "Processes that died or hung and were restarted.", "worker")
        self._cpu = counter("stage_cpu_seconds", "CPU seconds spent on a stage by all processes.", "stage")
        self._stages = Histogram(
            "mammod_stage_seconds",
            "Seconds that one passage of a stage took, including waiting.",
            ["stage"],
            registry=registry,
            buckets=STAGE_BUCKETS,
        )
        self._turnaround = Histogram(
            "mammod_job_turnaround_seconds",
            "Seconds from the arrival of a job's last object to its reports in the outbox.",
            registry=registry,
            buckets=TURNAROUND_BUCKETS,
        )
        self._batches = Histogram(
            "mammod_classifier_batch_rois",
            "ROIs in one batch of the classifier.",
            registry=registry,
            buckets=BATCH_BUCKETS,
        )
        registry.register(_OldNames((self._attempts, self._evicted, self._evicted_bytes)))
        self._create_series()

    def _create_series(self) -> None:
        """Create every series at 0: the rate of a series misses the event that creates it."""
        for reason in RejectionKind:
            self._rejected.labels(reason.value)
        for arrival in Arrival:
            self._arrived.labels(arrival.value)
        for outcome in JobOutcome:
            self._attempts.labels(outcome.value)
        for kind in KINDS:
            for sent in StoreOutcomeKind:
                self._sent.labels(kind, sent.value)
        for worker in WorkerKind:
            self._restarts.labels(worker.value)
        for what in EVICTED:
            self._evicted.labels(what)
        for stage in Stage:
            self._stages.labels(stage.value)
            self._cpu.labels(stage.value)

    def record(self, event: Event) -> None:
        """Count an event."""
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
                self._attempts.labels(event.outcome.value).inc()
                self._lesions.inc(event.lesions)
                if event.seconds is not None:
                    self._turnaround.observe(event.seconds)
            case BatchClassified():
                self._batches.observe(event.rois)
            case DeletedForRoom():
                for what in EVICTED:
                    self._evicted.labels(what).inc(getattr(event, what))
                self._evicted_bytes.inc(event.bytes)
            case WorkerRestarted():
                self._restarts.labels(event.worker.value).inc()
            case ReportSent():
                self._sent.labels(event.kind, event.outcome.value).inc()

    def record_stage(self, timing: StageTiming) -> None:
        """Count one passage of a stage and its CPU time."""
        if timing.seconds is not None:
            self._stages.labels(timing.stage.value).observe(timing.seconds)
        self._cpu.labels(timing.stage.value).inc(timing.cpu_seconds)

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Add what `collect` returns at each scrape."""
        self.registry.register(_ScrapeCollector(collect))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the header `accept` requests."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
