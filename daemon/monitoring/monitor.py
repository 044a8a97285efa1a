"""Collect the state of a running service from its parts, for metrics, health and the status page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client.core import Metric
from sqlalchemy.exc import SQLAlchemyError

import config
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.audit.trail import AuditTrail
from daemon.events import bus, timings
from daemon.events.bus import Event, WorkerKind
from daemon.events.timings import StageTiming
from daemon.ledger import Ledger
from daemon.ledger.retention import spool_bytes
from daemon.ledger.summary import LastJob, last_jobs, urgent_work
from daemon.monitoring import health, state_metrics
from daemon.monitoring.archive_health import ArchiveHealth
from daemon.monitoring.history import SAMPLE_S, SPAN_S, History, Sample
from daemon.monitoring.metrics import Metrics, kind_of
from daemon.monitoring.recent_callers import RecentCallers
from daemon.monitoring.state_metrics import Disk, ServiceState, WorkerState, age
from daemon.monitoring.status_report import RESEARCH_USE
from daemon.receiving.listener import Listener
from daemon.storage.spool import Spool
from daemon.system.tls import expiries
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Bundle

MAX_LAST_JOBS = 15
RATE_WINDOW_S = 60

log = structlog.get_logger()


@dataclass(frozen=True)
class MonitoredParts:
    """The monitored parts of a running service.

    `settings` returns the current settings, which a reload may change; `beats` the seconds since each loop's
    last heartbeat; `phase` "starting", "draining" or None.
    """

    settings: Callable[[], Settings]
    ledger: Ledger
    spool: Spool
    archive: Archive
    bundle: Bundle
    listener: Listener
    decoders: DecoderPool
    classifier: ClassifierPool
    audit: AuditTrail
    beats: Callable[[], Mapping[str, float]]
    phase: Callable[[], str | None]


class Monitor:
    """Subscriber to events and timings from creation until `close`. Thread-safe.

    Call `sample` every `daemon.monitoring.history.SAMPLE_S`, `probe_archive` every minute and
    `count_spool` every ten minutes.
    """

    def __init__(self, parts: MonitoredParts) -> None:
        self._parts = parts
        self._started = time.time()
        self._metrics = Metrics()
        self._metrics.add(self._collect)
        self._archive = ArchiveHealth()
        self._callers = RecentCallers()
        self._history = History()
        self._probe = health.LedgerProbe(parts.ledger)
        self._spool_bytes: int | None = None
        bus.subscribe(self._record)
        timings.subscribe(self._record_stage)

    def close(self) -> None:
        """Unsubscribe."""
        bus.unsubscribe(self._record)
        timings.unsubscribe(self._record_stage)

    def _record(self, event: Event) -> None:
        self._metrics.record(event)
        self._archive.record(event)
        self._callers.record(event)
        self._history.record(event)

    def _record_stage(self, timing: StageTiming) -> None:
        self._metrics.record_stage(timing)
        self._history.record_stage(timing)

    # --- periodic tasks ------------------------------------------------------------

    def sample(self) -> None:
        """Add a sample of the backlog to the history."""
        with suppress(SQLAlchemyError), self._parts.ledger.read() as connection:
            self._history.sample(urgent_work(connection), time.time())

    def probe_archive(self) -> None:
        """Send a C-ECHO to the archive if it did not answer anything lately."""
        self._archive.probe(self._parts.archive)

    def count_spool(self) -> None:
        """Count the bytes in the spool, by the ledger."""
        with suppress(SQLAlchemyError), self._parts.ledger.read() as connection:
            self._spool_bytes = spool_bytes(connection)

    # --- answers of the status port ------------------------------------------------

    def why_not_alive(self) -> list[str]:
        """Return why the service should be restarted; empty if it is alive."""
        return health.not_alive(self._parts.beats())

    def why_not_ready(self) -> list[str]:
        """Return why senders should come back later; empty if the service accepts work."""
        parts = self._parts
        workers = {"decoder": parts.decoders.trouble, "classifier": parts.classifier.trouble}
        return health.not_ready(parts.phase(), parts.spool.check_room, self._probe.problem(), workers)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics for Prometheus and their content type."""
        return self._metrics.render(accept)

    def _collect(self) -> Iterable[Metric]:
        return state_metrics.collect(self._now(self.why_not_ready()), self._parts.ledger)

    def _now(self, not_ready: list[str]) -> ServiceState:
        parts = self._parts
        return ServiceState(
            ready=not not_ready,
            associations_open=parts.listener.open_associations,
            connections_waiting=parts.listener.waiting,
            queues={"decode": parts.decoders.waiting, "classify": parts.classifier.waiting},
            workers={
                WorkerKind.RECEIVER: WorkerState(parts.listener.receivers_alive, parts.listener.receivers),
                WorkerKind.DECODER: WorkerState(parts.decoders.alive, parts.decoders.expected),
                WorkerKind.CLASSIFIER: WorkerState(len(parts.classifier.pids), parts.classifier.expected),
            },
            beats=parts.beats(),
            archive=self._archive.health,
            disk=_disk(parts.spool),
            min_free=parts.spool.min_free,
            spool_bytes=self._spool_bytes,
            certificates=expiries(parts.settings()),
            bundle=parts.bundle,
            engine=parts.classifier.engine,
            audit=parts.audit.state,
        )

    def overview(self) -> dict[str, Any]:
        """Return what the status page shows, JSON-ready: times in seconds since 1970, no patient data."""
        not_ready, parts = self.why_not_ready(), self._parts
        now = self._now(not_ready)
        try:
            with parts.ledger.read() as connection:
                urgent, last = urgent_work(connection), last_jobs(connection, MAX_LAST_JOBS)
        except SQLAlchemyError as error:
            log.error("ledger not readable for the status page", error=type(error).__name__)
            urgent, last = None, []
        settings, clock = parts.settings(), datetime.now(UTC)
        return {
            "now": time.time(),
            "started": self._started,
            "version": config.__version__,
            "ae_title": settings.listener.ae_title,
            "port": settings.listener.port,
            "not_alive": self.why_not_alive(),
            "not_ready": not_ready,
            "note": RESEARCH_USE,
            "jobs": urgent and {state.value: _in_state(found) for state, found in urgent.jobs.items()},
            "reports": urgent and {state.value: _in_state(found) for state, found in urgent.reports.items()},
            "queues": dict(now.queues),
            "associations_open": now.associations_open,
            "totals": {
                "instances": self._history.instances,
                "lesions": self._history.lesions,
                "reports": self._history.reports,
            },
            "history": _plots(self._history.samples()),
            "stages": {
                stage.value: latency and asdict(latency) for stage, latency in self._history.latencies().items()
            },
            "last_jobs": [_job(job) for job in last],
            "callers": [asdict(caller) for caller in self._callers.last()],
            "workers": {worker.value: asdict(state) for worker, state in now.workers.items()},
            "archive": asdict(now.archive) | {"name": settings.archive.ae_title, "by": _protocol(settings)},
            "spool": {
                "free": now.disk and now.disk.free,
                "disk": now.disk and now.disk.total,
                "min_free": now.min_free,
                "bytes": now.spool_bytes,
            },
            "certificates": [
                {"setting": expiry.setting, "days_left": round(expiry.days_left(clock), 1)}
                for expiry in now.certificates
            ],
            "audit": now.audit and dict(now.audit),
            "bundle": _bundle(now),
        }


def _disk(spool: Spool) -> Disk | None:
    try:
        found = shutil.disk_usage(spool.directory)
    except OSError:
        return None
    return Disk(found.total, found.free)


def _in_state(found: Any) -> dict[str, Any]:
    return {"count": found.count, "oldest_seconds": age(found.since) if found.count else None}


def _protocol(settings: Settings) -> str:
    return "STOW-RS" if settings.archive.stow_url else "C-STORE"


def _job(job: LastJob) -> dict[str, Any]:
    shown = asdict(job)
    shown["source"] = kind_of(shown.pop("source_class"))
    return shown


def _bundle(now: ServiceState) -> dict[str, Any]:
    manifest = now.bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": now.bundle.digest[:12],
        "trained": manifest.trained,
        "engine": now.engine,
        "intended_use": manifest.intended_use,
        "metrics": [metric.model_dump() for metric in manifest.metrics],
    }


def _plots(samples: list[Sample]) -> dict[str, Any]:
    """Return the backlog by state, and the throughput per minute over the last minute before each sample."""
    rates: dict[str, list[float]] = {"instances": [], "lesions": [], "reports": []}
    for name, values in rates.items():
        for index, after in enumerate(samples):
            before = samples[max(0, index - round(RATE_WINDOW_S / SAMPLE_S))]
            minutes = (after.at - before.at) / 60
            values.append(round((getattr(after, name) - getattr(before, name)) / minutes, 2) if minutes > 0 else 0.0)
    return {
        "span_seconds": SPAN_S,
        "at": [round(sample.at, 1) for sample in samples],
        "backlog": {state: [sample.backlog[state] for sample in samples] for state in _states(samples)},
        "per_minute": rates,
    }


def _states(samples: list[Sample]) -> list[str]:
    return list(samples[-1].backlog) if samples else []
