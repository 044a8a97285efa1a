"""`mammod serve`: puts listener, ledger, workers and sender together, and takes them apart again."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from config.errors import ConfigurationError
from config.loading import load_settings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.sender_threads import SenderThreads
from daemon.archive.storage_commitment import StorageCommitment, longest_wait_s
from daemon.audit.trail import AuditTrail
from daemon.jobs.dispatcher import Dispatcher
from daemon.jobs.job_runner import JobRunner
from daemon.jobs.pipeline import Pipeline
from daemon.ledger import Ledger, instances, job_claims, jobs, nodes, outbox
from daemon.maintenance.periodic_tasks import PeriodicTasks
from daemon.monitoring.http_server import StatusHttpServer
from daemon.monitoring.monitor import Monitor, MonitoredParts
from daemon.monitoring.status_report import certificates, in_short
from daemon.nodes.membership import Node, node_facts
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.receiving.receiver_process import ReceiverProcess
from daemon.storage.spool import open_spool
from daemon.system import log as logging_setup
from daemon.system.clock_watch import ClockWatch
from daemon.system.systemd import Supervised, reloading, sd_notify, stopping
from daemon.workers.bundle_source import algorithm, engine_cache, open_bundle
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from daemon.workers.pinned_bundle import BundleWatch, pin_bundle
from model.bundle import Bundle

MAIN_LOOP_S = 1.0
MOST_PROCESSES = 4  # that receive, where the settings leave the number to us
LAST_STEPS_S = 5.0  # of a stop whose limit has passed: for each kind of process to end

# What a SIGHUP takes over from the settings file; everything else needs a restart.
RELOADABLE = ("archive", "lesions", "reports", "retention", "log")

log = structlog.get_logger()


class Service:
    """The running service. `start` returns when it is ready; `run` blocks until SIGTERM or SIGINT and then drains."""

    def __init__(self, settings: Settings, settings_path: Path | None, allow_untrained: bool) -> None:
        self._settings = settings
        self._settings_path = settings_path
        self._allow_untrained = allow_untrained
        self._stop = threading.Event()
        self._reload = threading.Event()
        self._phase: str | None = "starting"
        self._beat = time.monotonic()

    def start(self) -> None:
        settings = self._settings
        require_archive(settings)
        sd_notify("STATUS=opening the ledger and the bundle")
        self._spool = open_spool(settings.spool)
        self._ledger = Ledger(settings.ledger_url, settings.ledger.password_file)
        bundle = open_bundle(settings, self._allow_untrained)
        log.info("bundle loaded", bundle=bundle.digest[:12], name=bundle.manifest.name, trained=bundle.manifest.trained)
        self._node = Node(self._ledger, self._spool, node_facts(settings, bundle))
        self._recover(bundle)
        self._node.start()
        with self._ledger.read() as connection:
            in_use = {row.bundle for row in nodes.all(connection)}
        opened, bundle = bundle, pin_bundle(bundle, settings.spool.directory, in_use)
        sd_notify("STATUS=warming up the classifier")
        self._archive = Archive(settings.archive, settings.listener.ae_title, self._node.incoming)
        self._classifier = ClassifierPool(bundle, settings.workers, settings.model.engine, cache=engine_cache(settings))
        self._decoders = DecoderPool(
            settings.workers.decoders or os.cpu_count() or 1, bundle.manifest, settings.workers
        )
        self._decoders.start()
        self._classifier.start()
        log.info("classifier started", engine=self._classifier.engine, why=self._classifier.why)
        pipeline = Pipeline(self._decoders, self._classifier, algorithm(bundle), bundle.digest)
        worker = JobRunner(lambda: self._settings, self._ledger, self._spool, pipeline)
        self._audit = AuditTrail(settings)
        self._commitment = StorageCommitment(self._ledger, self._archive)
        self._sending = SenderThreads(
            self._ledger,
            self._node.hold,
            self._archive,
            self._spool,
            lambda: self._settings,
            self._commitment,
            self._audit,
        )
        self._dispatcher = Dispatcher(self._ledger, self._node.hold, worker.do, after=self._sending.wake)
        self._intake = Intake(self._spool, self._ledger, bundle.digest, self._dispatcher.wake, self._audit.received)
        self._listener = Listener(
            settings.listener,
            self._node.incoming,
            self._intake.accept,
            self._spool.full,
            self._commitment.take_from,
            self._audit.rejected,
            self._audit.association_ended,
            self._receivers(),
        )
        self._observation = Monitor(
            MonitoredParts(
                lambda: self._settings,
                self._ledger,
                self._spool,
                self._archive,
                bundle,
                self._listener,
                self._decoders,
                self._classifier,
                self._audit,
                self._beats,
                lambda: self._phase,
            )
        )
        self._schedule = PeriodicTasks(
            self._ledger,
            self._node,
            self._spool,
            self._archive,
            lambda: self._settings,
            self._intake,
            self._audit,
            BundleWatch(opened),
            self._observation,
            self._dispatcher.wake,
        )
        self._status = StatusHttpServer(settings, self._ledger, self._archive, bundle, self._live, self._observation)
        self._schedule.check_certificates()
        self._audit.started()
        self._listener.start()
        self._dispatcher.start()
        self._sending.start()
        self._schedule.start()
        self._node.on_freed = self._take_freed
        self._beat = time.monotonic()
        self._phase = None
        self._status.start()
        gc.collect()
        gc.freeze()  # what is here now stays; to look through it again for garbage takes 0.1 s, in which nothing else runs

    def _recover(self, bundle: Bundle) -> None:
        """Become a node, and take up what dead ones left: files without rows go, interrupted jobs are begun again.

        Where no other node is alive, that is all that is unfinished.
        """
        taken = self._node.join()
        orphans = self._node.sweep_incoming()
        begun = self._node.incoming.stat().st_mtime
        alone = self._node.is_alone()

        def transition(connection: Connection) -> None:
            job_claims.move_to_bundle(connection, bundle.digest)
            jobs.promote(connection, None, time.time())
            if alone:
                self._all_due_now(connection)

        self._ledger.transact(transition)
        if alone:
            with self._ledger.alone_with_spool() as connection:
                orphans += self._spool.sweep(instances.paths(connection) | outbox.paths(connection), begun)
        log.info("recovered", orphans_removed=orphans, jobs_taken_up=taken.jobs, node=self._node.id, alone=alone)

    def _receivers(self) -> list[ReceiverProcess]:
        """None for a bucket, whose copies in the directory one process looks after."""
        if self._spool.store is not None:
            return []
        count = (self._settings.listener.processes or min((os.cpu_count() or 1) + 1, MOST_PROCESSES)) - 1
        return [
            ReceiverProcess(name, self._settings, self._node.incoming / name, self._intake.record)
            for name in (f"receiver-{number}" for number in range(1, count + 1))
        ]

    def _take_freed(self) -> None:
        """Work of a dead node was given back."""
        self._dispatcher.wake()
        self._sending.wake()

    def _live(self) -> dict[str, Any]:
        """What the status port says beyond the ledger."""
        return {
            "rejected": self._listener.rejected,
            "certificates": certificates(self._settings),
            "audit": self._audit.state,
            "removed_for_room": vars(self._schedule.removed),
        }

    def _beats(self) -> dict[str, float]:
        """Seconds since each loop was last alive."""
        now = time.monotonic()
        return {"main_loop": now - self._beat, "dispatcher": now - self._dispatcher.beat}

    def _clock_was_set_back(self, seconds: float) -> bool:
        """What waits for a time that an earlier clock named is due now; False where the ledger could not be told."""
        try:
            freed = self._ledger.transact(self._all_due_now)
        except SQLAlchemyError as error:
            log.error("the ledger cannot be told that the clock was set back, trying again", error=type(error).__name__)
            return False
        self._schedule.all_now()
        self._dispatcher.wake()
        self._sending.wake()
        log.warning("the clock was set back: what waited for a time is due now", seconds=round(seconds), freed=freed)
        return True

    def _all_due_now(self, connection: Connection) -> int:
        now = time.time()
        freed = jobs.due_now(connection, now)
        return freed + outbox.due_now(connection, now, longest_wait_s(self._settings.archive))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain: exit is clean when this returns."""
        clock = ClockWatch()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        self.start()
        # In one piece: print writes the line and its end apart, and another thread's log line may come between.
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sd_notify("READY=1")
        supervised = Supervised(lambda: in_short(self._ledger))
        log.info("ready", port=self._settings.listener.port, ae_title=self._settings.listener.ae_title)
        set_back = 0.0
        while not self._stop.wait(supervised.wait_s(MAIN_LOOP_S)):
            self._beat = time.monotonic()
            if self._reload.is_set():
                self._reload.clear()
                self._take_over_settings()
            set_back += clock.set_back()
            if set_back and self._clock_was_set_back(set_back):
                set_back = 0.0
            supervised.look(alive=not self._observation.alive())
        self.stop()
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            # Threads that did not end in time hold nothing that is not in the ledger, and Python would wait for them.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload.set()

    def _take_over_settings(self) -> None:
        sd_notify(reloading())
        try:
            new = load_settings(self._settings_path)
            require_archive(new)
        except ConfigurationError as error:
            log.error("settings not reloaded, the old ones stay", reason=str(error))
        else:
            # Of the listener, who may call can change while it runs.
            listener = self._settings.listener.model_copy(update={"peers": new.listener.peers})
            peers_changed = listener != self._settings.listener
            self._settings = self._settings.model_copy(update={"listener": listener})
            names = type(new).model_fields
            changed = [name for name in names if getattr(new, name) != getattr(self._settings, name)]
            self._settings = self._settings.model_copy(
                update={name: getattr(new, name) for name in changed if name in RELOADABLE}
            )
            self._archive.settings = self._settings.archive
            self._listener.replace_peers(listener.peers)
            logging_setup.configure(self._settings.log)
            self._listener.reconfigure_log(self._settings.log)
            log.info(
                "settings reloaded",
                changed=[*(name for name in changed if name in RELOADABLE), *["listener.peers"] * peers_changed],
                need_restart=[name for name in changed if name not in RELOADABLE],
            )
            self._sending.wake()
            if "retention" in changed:
                self._schedule.retention_now()
        self._listener.reread_certificates()
        self._schedule.check_certificates()
        sd_notify("READY=1")

    def stop(self) -> None:
        """Accept nothing more, finish what is in flight within [service] shutdown_timeout_s, and end every process and thread.

        What is not finished by then stands in the ledger as if it had not been begun.
        """
        end = time.monotonic() + self._settings.service.shutdown_timeout_s

        def left() -> float:
            return max(0.0, end - time.monotonic())

        sd_notify(stopping(self._settings.service.shutdown_timeout_s + 3 * LAST_STEPS_S))
        log.info("stopping")
        self._phase = "draining"
        self._stop.set()
        self._sending.stop()
        self._listener.stop(left() / 2)  # the other half is for what arrived until then
        drained = self._dispatcher.stop(left())
        self._schedule.stop()
        drained &= self._sending.finish(left)
        self._decoders.stop(max(left(), LAST_STEPS_S) if drained else 0)
        self._classifier.stop(max(left(), LAST_STEPS_S) if drained else 0)
        self._status.stop()
        self._observation.close()
        self._node.leave()
        self._ledger.close()
        self._audit.stopped()
        log.info("stopped", drained=drained)


def require_archive(settings: Settings) -> None:
    """Raises ConfigurationError when there is nowhere to send reports to."""
    if settings.archive.host is None and settings.archive.stow_url is None:
        raise ConfigurationError(
            "archive.host is not set: name the archive's host (with archive.port and archive.ae_title), or archive.stow_url"
        )
    if settings.archive.retrieve == "dicomweb" and not (settings.archive.dicomweb_url or settings.archive.stow_url):
        raise ConfigurationError(
            'archive.retrieve = "dicomweb" needs archive.dicomweb_url (or archive.stow_url): name the DICOMweb service'
        )
    if settings.archive.commitment and settings.archive.host is None:
        raise ConfigurationError(
            "archive.commitment = true needs archive.host: storage commitment goes over DICOM; set archive.host and "
            "archive.port, or commitment = false"
        )
