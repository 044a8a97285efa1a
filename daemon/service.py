"""`mammod serve`: puts listener, ledger, workers and sender together, and takes them apart again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

import model
from config.errors import ConfigurationError, MammodError
from config.settings import Archive as ArchiveSettings
from config.settings import Settings, load_settings
from daemon import log as logging_setup
from daemon import retention, retrieval
from daemon.archive import Archive
from daemon.audit import Audit
from daemon.classifier import Classifier
from daemon.clock import ClockWatch
from daemon.commitment import Commitment, longest_wait_s
from daemon.decode import DecoderPool
from daemon.dispatcher import Dispatcher
from daemon.history import SAMPLE_S
from daemon.incoming import Incoming
from daemon.intake import Intake
from daemon.job import JobWorker
from daemon.kept_bundle import BundleWatch, keep_bundle
from daemon.ledger import Ledger, instances, jobs, outbox
from daemon.listener import Listener
from daemon.observation import Observation, Parts
from daemon.outgoing import StoreOutcome
from daemon.pipeline import Pipeline
from daemon.reports.facts import Algorithm, Measured
from daemon.sd_notify import sd_notify, watchdog_interval_s
from daemon.sender import send_due
from daemon.spool import Spool
from daemon.status import certificates
from daemon.status_page import StatusServer
from daemon.tls import expiries, warn_of_ends
from daemon.uids import device_uid
from model.bundle import Bundle, load_bundle, untrained_bundle

SEND_FALLBACK_S = 60
HOUSEKEEPING_S = 3600
SHRINK_S = 300
RETRIEVAL_S = 5
ASK_ARCHIVE_S = 60
COUNT_SPOOL_S = 600
CERTIFICATES_S = 86_400
MAIN_LOOP_S = 1.0
BUNDLE_WATCH_S = 60
LAST_STEPS_S = 5.0  # of a stop whose limit has passed: for each kind of process to end
DISPATCHER_SILENT_S = 60

# What a SIGHUP takes over from the settings file; everything else needs a restart.
RELOADABLE = ("archive", "lesions", "reports", "retention", "log")

log = structlog.get_logger()


def open_bundle(settings: Settings, allow_untrained: bool, *, made_at: Path | None = None) -> Bundle:
    """The bundle the settings name, else the packaged default, else (only where allowed) an untrained one made on the spot.

    That is kept at `made_at`, in the spool directory if not given.

    Raises:
        BundleError: see `model.bundle.load_bundle`.
        ConfigurationError: there is none.
    """
    if settings.model.bundle is not None:
        return load_bundle(settings.model.bundle, allow_untrained=allow_untrained)
    default = default_bundle_path()
    if default.exists():
        return load_bundle(default, allow_untrained=allow_untrained)
    if not allow_untrained:
        raise ConfigurationError(
            "model.bundle is not set and no trained bundle is installed; name a bundle, or use --allow-untrained to try the way "
            "of the data with a network whose numbers mean nothing"
        )
    made = made_at or untrained_path(settings)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        bundle = untrained_bundle(made)
        made.chmod(0o700)  # like all of the spool
        for file in made.iterdir():
            file.chmod(0o600)
        return bundle
    return load_bundle(made, allow_untrained=True)


def untrained_path(settings: Settings) -> Path:
    """Where the untrained bundle is kept that is made where no other is there."""
    return settings.spool.directory / "untrained-bundle"


def default_bundle_path() -> Path:
    return Path(model.__file__).parent / "bundles" / "default"


def algorithm(bundle: Bundle) -> Algorithm:
    """The facts of the bundle that a report states."""
    manifest = bundle.manifest
    return Algorithm(
        name=manifest.name,
        version=manifest.version,
        device_uid=device_uid(bundle.digest),
        trained=manifest.trained,
        threshold=manifest.threshold,
        intended_use=manifest.intended_use,
        temperature=manifest.temperature,
        measured=tuple(Measured(**metric.model_dump()) for metric in manifest.metrics),
    )


class Service:
    """The running service. `start` returns when it is ready; `run` blocks until SIGTERM or SIGINT and then drains."""

    def __init__(self, settings: Settings, settings_path: Path | None, allow_untrained: bool) -> None:
        self._settings = settings
        self._settings_path = settings_path
        self._allow_untrained = allow_untrained
        self._stop = threading.Event()
        self._reload = threading.Event()
        self._sending = threading.Lock()
        self._removed = retention.Removed()
        self._phase: str | None = "starting"
        self._beat = time.monotonic()

    def start(self) -> None:
        settings = self._settings
        require_archive(settings)
        self._spool = Spool(settings.spool.directory, settings.spool.min_free)
        self._ledger = Ledger(settings.ledger_url)
        bundle = open_bundle(settings, self._allow_untrained)
        log.info("bundle loaded", bundle=bundle.digest[:12], name=bundle.manifest.name, trained=bundle.manifest.trained)
        self._bundle_watch = BundleWatch(bundle)
        bundle = keep_bundle(bundle, settings.spool.directory)
        self._recover(bundle)
        self._archive = Archive(settings.archive, settings.listener.ae_title, self._spool.incoming)
        self._classifier = Classifier(bundle, settings.workers, settings.model.engine)
        self._decoders = DecoderPool(
            settings.workers.decoders or os.cpu_count() or 1, bundle.manifest, settings.workers
        )
        self._decoders.start()
        self._classifier.start()
        pipeline = Pipeline(self._decoders, self._classifier, algorithm(bundle), bundle.digest)
        worker = JobWorker(lambda: self._settings, self._ledger, self._spool, pipeline)
        self._dispatcher = Dispatcher(self._ledger, worker.do, after=self._plan_sending)
        self._audit = Audit(settings)
        self._commitment = Commitment(self._ledger, self._archive)
        self._scheduler = BackgroundScheduler(timezone=UTC)
        self._intake = Intake(self._spool, self._ledger, bundle.digest, self._dispatcher.wake, self._audit.received)
        self._listener = Listener(
            settings.listener,
            self._spool.incoming,
            self._intake.accept,
            self._full,
            self._commitment.take_from,
            self._audit.rejected,
            self._audit.association_ended,
        )
        self._observation = Observation(
            Parts(
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
        self._status = StatusServer(settings, self._ledger, self._archive, bundle, self._live, self._observation)
        self._check_certificates()
        self._audit.started()
        self._listener.start()
        self._dispatcher.start()
        self._schedule()
        self._beat = time.monotonic()
        self._phase = None
        self._status.start()

    def _recover(self, bundle: Bundle) -> None:
        """Take up what an earlier run left: files without rows go, interrupted jobs are begun again."""
        now = time.time()
        with self._ledger.write() as connection:
            orphans = self._spool.sweep(instances.paths(connection) | outbox.paths(connection))
            again = jobs.recover(connection, bundle.digest, now)
            jobs.promote(connection, None, now)
            jobs.due_now(connection, now)
            outbox.due_now(connection, now, longest_wait_s(self._settings.archive))
        log.info("recovered", orphans_removed=orphans, jobs_taken_up=again)

    def _full(self) -> str | None:
        """Why new associations are refused, if they are."""
        try:
            self._spool.check_room()
        except MammodError as error:
            return str(error)
        return None

    def _live(self) -> dict[str, Any]:
        """What the status port says beyond the ledger."""
        return {
            "rejected": self._listener.rejected,
            "certificates": certificates(self._settings),
            "audit": self._audit.state,
            "removed_for_room": vars(self._removed),
        }

    def _beats(self) -> dict[str, float]:
        """Seconds since each loop was last alive."""
        now = time.monotonic()
        return {"main_loop": now - self._beat, "dispatcher": now - self._dispatcher.beat}

    def _check_certificates(self) -> None:
        warn_of_ends(expiries(self._settings))

    def _schedule(self) -> None:
        once = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        self._scheduler.add_job(self._send, "interval", seconds=SEND_FALLBACK_S, id="send-fallback", **once)
        self._scheduler.add_job(self._housekeep, "interval", seconds=HOUSEKEEPING_S, id="housekeeping", **once)
        self._scheduler.add_job(self._shrink, "interval", seconds=SHRINK_S, id="shrink", **once)
        self._scheduler.add_job(self._retrieve, "interval", seconds=RETRIEVAL_S, id="retrieval", **once)
        self._scheduler.add_job(self._check_certificates, "interval", seconds=CERTIFICATES_S, id="certificates", **once)
        self._scheduler.add_job(self._watch_bundle, "interval", seconds=BUNDLE_WATCH_S, id="bundle", **once)
        observed, soon = self._observation, {**once, "next_run_time": datetime.now(UTC)}
        self._scheduler.add_job(observed.sample, "interval", seconds=SAMPLE_S, id="sample", **soon)
        self._scheduler.add_job(observed.ask_archive, "interval", seconds=ASK_ARCHIVE_S, id="ask-archive", **once)
        self._scheduler.add_job(observed.count_spool, "interval", seconds=COUNT_SPOOL_S, id="count-spool", **soon)
        self._scheduler.start()
        self._plan_sending()

    def _plan_sending(self) -> None:
        """Set the sender's next run to when the ledger says that the next report is due."""
        with self._ledger.read() as connection:
            due = outbox.next_attempt(connection)
        if due is None or self._stop.is_set():
            return
        # Not in the past, or APScheduler would count it as missed.
        when = max(datetime.fromtimestamp(due, UTC), datetime.now(UTC) + timedelta(milliseconds=1))
        self._scheduler.add_job(
            self._send,
            "date",
            run_date=when,
            id="send",
            replace_existing=True,
            max_instances=2,
            misfire_grace_time=None,
        )

    def _send(self) -> None:
        """Send what is due; one sender at a time, the one that holds the lock takes what the others came for."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            self._send_due(self._settings.archive, self._stop.is_set)
            if not self._stop.is_set():
                self._commitment.ask_due()
        finally:
            self._sending.release()
            self._plan_sending()

    def _send_due(self, archive: ArchiveSettings, stopping: Callable[[], bool]) -> None:
        told: list[tuple[Row, StoreOutcome]] = []
        try:
            send_due(
                self._ledger,
                self._archive,
                archive,
                self._spool.directory,
                lambda row, outcome: told.append((row, outcome)),
                stopping,
            )
        finally:
            self._audit.sent(told, self._settings)

    def _retrieve(self) -> None:
        if self._settings.archive.retrieve == "off":
            return
        associations: set[str] = set()

        def accept(incoming: Incoming) -> None:
            associations.add(incoming.association_id)
            self._intake.accept(incoming)

        try:
            retrieval.ask_for_missing(self._ledger, self._archive, self._settings, accept)
        finally:
            for association in associations:
                self._audit.association_ended(association, we_asked=True)

    def _watch_bundle(self) -> None:
        if found := self._bundle_watch.look():
            log.warning("the bundle's folder was changed; the service keeps the one it verified", found=found)

    def _housekeep(self) -> None:
        retention.remove_strays(self._ledger, self._spool)
        retention.forget(self._ledger, self._spool, self._settings.retention)
        with self._ledger.write() as connection:
            jobs.promote(connection, None, time.time())
        self._dispatcher.wake()

    def _shrink(self) -> None:
        self._removed += retention.shrink(self._ledger, self._spool, self._settings.retention)

    def _clock_was_set_back(self, seconds: float) -> bool:
        """What waits for a time that an earlier clock named is due now; False where the ledger could not be told."""
        try:
            with self._ledger.write() as connection:
                now = time.time()
                freed = jobs.due_now(connection, now)
                freed += outbox.due_now(connection, now, longest_wait_s(self._settings.archive))
        except SQLAlchemyError as error:
            log.error("the ledger cannot be told that the clock was set back, trying again", error=type(error).__name__)
            return False
        for job in self._scheduler.get_jobs():
            with suppress(JobLookupError):  # "send" may have been run just now; it plans its next run itself
                job.modify(next_run_time=datetime.now(UTC))
        self._dispatcher.wake()
        log.warning("the clock was set back: what waited for a time is due now", seconds=round(seconds), freed=freed)
        return True

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
        sd_notify("READY=1", "STATUS=ready")
        log.info("ready", port=self._settings.listener.port, ae_title=self._settings.listener.ae_title)
        watchdog = watchdog_interval_s()
        fed = time.monotonic()
        set_back = 0.0
        while not self._stop.wait(min(MAIN_LOOP_S, watchdog or MAIN_LOOP_S)):
            self._beat = time.monotonic()
            if self._reload.is_set():
                self._reload.clear()
                self._take_over_settings()
            set_back += clock.set_back()
            if set_back and self._clock_was_set_back(set_back):
                set_back = 0.0
            alive = time.monotonic() - self._dispatcher.beat < DISPATCHER_SILENT_S
            if watchdog and alive and time.monotonic() - fed >= watchdog / 2:
                sd_notify("WATCHDOG=1")
                fed = time.monotonic()
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
        sd_notify("RELOADING=1")
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
            log.info(
                "settings reloaded",
                changed=[*(name for name in changed if name in RELOADABLE), *["listener.peers"] * peers_changed],
                need_restart=[name for name in changed if name not in RELOADABLE],
            )
            self._plan_sending()
        self._listener.reread_certificates()
        self._check_certificates()
        sd_notify("READY=1", "STATUS=ready")

    def stop(self) -> None:
        """Accept nothing more, finish what is in flight within [service] stop_within_s, and end every process and thread.

        What is not finished by then stands in the ledger as if it had not been begun.
        """
        end = time.monotonic() + self._settings.service.stop_within_s

        def left() -> float:
            return max(0.0, end - time.monotonic())

        sd_notify("STOPPING=1", "STATUS=draining")
        log.info("stopping")
        self._phase = "draining"
        self._stop.set()
        self._listener.stop(left() / 2)  # the other half is for what arrived until then
        drained = self._dispatcher.stop(left())
        self._scheduler.shutdown(wait=False)
        drained &= self._send_once_more(left)
        self._decoders.stop(max(left(), LAST_STEPS_S) if drained else 0)
        self._classifier.stop(max(left(), LAST_STEPS_S) if drained else 0)
        self._status.stop()
        self._observation.close()
        self._ledger.close()
        self._audit.stopped()
        log.info("stopped", drained=drained)

    def _send_once_more(self, left: Callable[[], float]) -> bool:
        """Reports of the last jobs go out now rather than at the next start, where the archive is there and time is left.

        False where a report under way did not end in time; the archive has it or not, and is sent it again.
        """
        if not self._sending.acquire(timeout=left()):
            return False
        try:
            if left() > 0:
                archive = self._settings.archive
                limited = archive.model_copy(update={"timeout_s": min(archive.timeout_s, left())})
                self._archive.settings = limited
                self._send_due(limited, lambda: left() == 0)
        finally:
            self._sending.release()
        return True


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
