"""Build the service: create each part, connect the parts, and start the processes that decode and classify.

`daemon.service` starts the threads of the parts, runs the main loop and stops everything again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from config.loading import require_archive
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.sender_threads import SenderThreads
from daemon.archive.storage_commitment import StorageCommitment
from daemon.audit.trail import AuditTrail
from daemon.jobs.dispatcher import Dispatcher
from daemon.jobs.job_runner import JobRunner
from daemon.jobs.worker_pools import WorkerPools, make_pools
from daemon.ledger import Ledger, nodes
from daemon.maintenance.periodic_tasks import PeriodicTasks
from daemon.maintenance.recovery import recover
from daemon.monitoring.http_server import StatusHttpServer
from daemon.monitoring.monitor import Monitor, MonitoredParts
from daemon.monitoring.status_report import certificates
from daemon.nodes.membership import Node, node_facts
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.receiving.receiver_process import ReceiverProcess
from daemon.storage.spool import Spool, open_spool
from daemon.system.systemd import sd_notify
from daemon.workers.bundle_source import engine_cache, open_bundle
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from daemon.workers.pinned_bundle import BundleWatch, pin_bundle
from model.bundle import Bundle

MAX_RECEIVERS = 4  # processes, if the settings do not give a number

log = structlog.get_logger()


@dataclass
class RunState:
    """What changes while the service runs.

    `settings` are replaced by a reload; `phase` is "starting", "draining" or None; `heartbeat` is when the
    main loop last ran (of time.monotonic()).
    """

    settings: Settings
    phase: str | None = "starting"
    heartbeat: float = field(default_factory=time.monotonic)

    def current_settings(self) -> Settings:
        """Return the settings as of the last reload."""
        return self.settings


@dataclass(frozen=True)
class Foundation:
    """What every other part needs.

    `opened_bundle` is the bundle in the folder that the settings name, `bundle` the service's own copy of it.
    """

    state: RunState
    ledger: Ledger
    spool: Spool
    node: Node
    opened_bundle: Bundle
    bundle: Bundle
    archive: Archive
    audit: AuditTrail


@dataclass(frozen=True)
class ServiceParts:
    """The parts that the service starts, reloads and stops."""

    ledger: Ledger
    node: Node
    archive: Archive
    audit: AuditTrail
    decoders: DecoderPool
    classifier: ClassifierPool
    sending: SenderThreads
    dispatcher: Dispatcher
    listener: Listener
    monitor: Monitor
    tasks: PeriodicTasks
    status_server: StatusHttpServer


def build_service(state: RunState, *, allow_untrained: bool) -> ServiceParts:
    """Build all parts; the processes that decode and classify run when this returns.

    Raises:
        ConfigurationError: a setting is missing, or the ledger cannot be used.
        BundleError, ClassifierError: there is nothing to classify with.
        SpoolUnavailable: the spool cannot be used.
    """
    base = _foundation(state, allow_untrained)
    pools = _start_pools(base)
    runner = JobRunner(state.current_settings, base.ledger, base.spool, pools.pipeline)
    commitment = StorageCommitment(base.ledger, base.archive)
    sending = SenderThreads(
        ledger=base.ledger,
        hold=base.node.hold,
        archive=base.archive,
        spool=base.spool,
        settings=state.current_settings,
        commitment=commitment,
        audit=base.audit,
    )
    dispatcher = Dispatcher(base.ledger, base.node.hold, runner.run, after=sending.wake)
    intake = Intake(
        spool=base.spool,
        ledger=base.ledger,
        bundle=base.bundle.digest,
        on_ready=dispatcher.wake,
        on_received=base.audit.received,
    )
    listener = _listener(base, intake, commitment)
    monitor = _monitor(base, listener=listener, pools=pools, dispatcher=dispatcher)
    tasks = _tasks(base, intake=intake, monitor=monitor, dispatcher=dispatcher)
    return ServiceParts(
        ledger=base.ledger,
        node=base.node,
        archive=base.archive,
        audit=base.audit,
        decoders=pools.decoders,
        classifier=pools.classifier,
        sending=sending,
        dispatcher=dispatcher,
        listener=listener,
        monitor=monitor,
        tasks=tasks,
        status_server=StatusHttpServer(
            settings=state.settings,
            ledger=base.ledger,
            archive=base.archive,
            bundle=base.bundle,
            live=_live_status(state, listener, base.audit, tasks),
            monitor=monitor,
        ),
    )


def _foundation(state: RunState, allow_untrained: bool) -> Foundation:
    """Open spool, ledger and bundle, join the nodes, and recover unfinished work."""
    settings = state.settings
    require_archive(settings)
    sd_notify("STATUS=opening the ledger and the bundle")
    spool = open_spool(settings.spool)
    ledger = Ledger(settings.ledger_url, settings.ledger.password_file)
    opened = open_bundle(settings, allow_untrained)
    log.info("bundle loaded", bundle=opened.digest[:12], name=opened.manifest.name, trained=opened.manifest.trained)
    node = Node(ledger, spool, node_facts(settings, opened))
    recover(ledger=ledger, spool=spool, node=node, bundle=opened.digest, archive=settings.archive)
    node.start()
    with ledger.read() as connection:
        in_use = {row.bundle for row in nodes.all(connection)}
    return Foundation(
        state=state,
        ledger=ledger,
        spool=spool,
        node=node,
        opened_bundle=opened,
        bundle=pin_bundle(opened, settings.spool.directory, in_use),
        archive=Archive(settings.archive, settings.listener.ae_title, node.incoming),
        audit=AuditTrail(settings),
    )


def _start_pools(base: Foundation) -> WorkerPools:
    settings = base.state.settings
    sd_notify("STATUS=warming up the classifier")
    decoders = settings.workers.decoders or os.cpu_count() or 1
    pools = make_pools(base.bundle, settings, decoders=decoders, cache=engine_cache(settings))
    pools.start()
    log.info("classifier started", engine=pools.classifier.engine, why=pools.classifier.why)
    return pools


def _listener(base: Foundation, intake: Intake, commitment: StorageCommitment) -> Listener:
    settings = base.state.settings
    return Listener(
        settings.listener,
        base.node.incoming,
        intake.accept,
        full=base.spool.full,
        commitment=commitment.take_from,
        on_rejection=base.audit.rejected,
        on_end=base.audit.association_ended,
        receivers=_receivers(base, intake),
    )


def _receivers(base: Foundation, intake: Intake) -> list[ReceiverProcess]:
    """Return the receiver processes; none for a bucket, whose local copies belong to one process."""
    if base.spool.store is not None:
        return []
    settings = base.state.settings
    count = (settings.listener.processes or min((os.cpu_count() or 1) + 1, MAX_RECEIVERS)) - 1
    return [
        ReceiverProcess(name, settings, base.node.incoming / name, intake.record)
        for name in (f"receiver-{number}" for number in range(1, count + 1))
    ]


def _monitor(
    base: Foundation,
    *,
    listener: Listener,
    pools: WorkerPools,
    dispatcher: Dispatcher,
) -> Monitor:
    state = base.state

    def beats() -> dict[str, float]:
        now = time.monotonic()
        return {"main_loop": now - state.heartbeat, "dispatcher": now - dispatcher.beat}

    return Monitor(
        MonitoredParts(
            settings=state.current_settings,
            ledger=base.ledger,
            spool=base.spool,
            archive=base.archive,
            bundle=base.bundle,
            listener=listener,
            decoders=pools.decoders,
            classifier=pools.classifier,
            audit=base.audit,
            beats=beats,
            phase=lambda: state.phase,
        )
    )


def _tasks(base: Foundation, *, intake: Intake, monitor: Monitor, dispatcher: Dispatcher) -> PeriodicTasks:
    return PeriodicTasks(
        ledger=base.ledger,
        node=base.node,
        spool=base.spool,
        archive=base.archive,
        settings=base.state.current_settings,
        intake=intake,
        audit=base.audit,
        bundle_watch=BundleWatch(base.opened_bundle),
        observation=monitor,
        on_ready=dispatcher.wake,
    )


def _live_status(
    state: RunState, listener: Listener, audit: AuditTrail, tasks: PeriodicTasks
) -> Callable[[], dict[str, Any]]:
    """Return a function that gives what only the running service knows, for /live and /status."""

    def live() -> dict[str, Any]:
        return {
            "rejected": listener.rejected,
            "certificates": certificates(state.settings),
            "audit": audit.state,
            "removed_for_room": vars(tasks.removed),
        }

    return live
