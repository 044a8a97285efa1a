"""What is seen of a running service from outside: brought together here from its parts, for metrics, health and status page."""

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
from daemon.monitoring import health, metrics
from daemon.monitoring.archive_health import ArchiveHealth
from daemon.monitoring.history import SAMPLE_S, SPAN_S, History, Sample
from daemon.monitoring.metrics import Disk, Metrics, Now, WorkerState, age, kind_of
from daemon.monitoring.recent_callers import RecentCallers
from daemon.monitoring.status_report import RESEARCH_USE
from daemon.receiving.listener import Listener
from daemon.storage.spool import Spool
from daemon.system.tls import expiries
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Bundle

LAST_JOBS = 15
RATE_OVER_S = 60

log = structlog.get_logger()


@dataclass(frozen=True)
class MonitoredParts:
    """The parts of a running service that are looked at; `settings` is asked anew, since they can be reloaded.

    `beats` gives the seconds since each loop was last alive, `phase` "starting", "draining" or None.
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
    """Hears what happens from its making until `close`. Thread-safe.

    `sample` is to be called every `daemon.monitoring.history.SAMPLE_S`, `ask_archive` every minute, `count_spool` every ten.
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
        bus.subscribe(self._hear)
        timings.subscribe(self._hear_stage)

    def close(self) -> None:
        bus.unsubscribe(self._hear)
        timings.unsubscribe(self._hear_stage)

    def _hear(self, event: Event) -> None:
        self._metrics.hear(event)
        self._archive.hear(event)
        self._callers.hear(event)
        self._history.hear(event)

    def _hear_stage(self, took: StageTiming) -> None:
        self._metrics.hear_stage(took)
        self._history.hear_stage(took)

    # --- what is done by the clock ---------------------------------------------------------------------------------

    def sample(self) -> None:
        with suppress(SQLAlchemyError), self._parts.ledger.read() as connection:
            self._history.sample(urgent_work(connection), time.time())

    def ask_archive(self) -> None:
        self._archive.ask(self._parts.archive)

    def count_spool(self) -> None:
        with suppress(SQLAlchemyError), self._parts.ledger.read() as connection:
            self._spool_bytes = spool_bytes(connection)

    # --- what is asked ---------------------------------------------------------------------------------------------

    def alive(self) -> list[str]:
        """Why the service should be restarted; empty where it lives."""
        return health.not_alive(self._parts.beats())

    def ready(self) -> list[str]:
        """Why senders should come back later; empty where it accepts work."""
        parts = self._parts
        workers = {"decoder": parts.decoders.trouble, "classifier": parts.classifier.trouble}
        return health.not_ready(parts.phase(), parts.spool.check_room, self._probe.problem(), workers)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        return self._metrics.render(accept)

    def _collect(self) -> Iterable[Metric]:
        return metrics.collect(self._now(self.ready()), self._parts.ledger)

    def _now(self, not_ready: list[str]) -> Now:
        parts = self._parts
        return Now(
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
        """What the status page shows, ready for JSON: times in seconds since the epoch, nothing of a patient."""
        not_ready, parts = self.ready(), self._parts
        now = self._now(not_ready)
        try:
            with parts.ledger.read() as connection:
                urgent, last = urgent_work(connection), last_jobs(connection, LAST_JOBS)
        except SQLAlchemyError as error:
            log.error("the ledger cannot be read for the status page", error=type(error).__name__)
            urgent, last = None, []
        chosen, clock = parts.settings(), datetime.now(UTC)
        return {
            "now": time.time(),
            "started": self._started,
            "version": config.__version__,
            "ae_title": chosen.listener.ae_title,
            "port": chosen.listener.port,
            "not_alive": self.alive(),
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
            "archive": asdict(now.archive) | {"name": chosen.archive.ae_title, "by": _way(chosen)},
            "spool": {
                "free": now.disk and now.disk.free,
                "disk": now.disk and now.disk.total,
                "min_free": now.min_free,
                "bytes": now.spool_bytes,
            },
            "certificates": [
                {"setting": one.setting, "days_left": round(one.days_left(clock), 1)} for one in now.certificates
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


def _way(settings: Settings) -> str:
    return "STOW-RS" if settings.archive.stow_url else "C-STORE"


def _job(job: LastJob) -> dict[str, Any]:
    shown = asdict(job)
    shown["source"] = kind_of(shown.pop("source_class"))
    return shown


def _bundle(now: Now) -> dict[str, Any]:
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
    """Backlog by state, and what was done per minute: over the minute before each sample, or what there is of it."""
    rates: dict[str, list[float]] = {"instances": [], "lesions": [], "reports": []}
    for name, values in rates.items():
        for index, after in enumerate(samples):
            before = samples[max(0, index - round(RATE_OVER_S / SAMPLE_S))]
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
