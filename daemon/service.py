"""`mammod serve`: start the service, run its main loop, reload settings, stop."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from config.errors import ConfigurationError
from config.loading import load_settings, require_archive
from config.settings import Settings
from daemon.composition import RunState, ServiceParts, build_service
from daemon.maintenance.recovery import make_all_due
from daemon.monitoring.status_report import summary_line
from daemon.system import log as logging_setup
from daemon.system.clock_watch import ClockWatch
from daemon.system.systemd import Supervised, reloading, sd_notify, stopping

MAIN_LOOP_S = 1.0
KILL_GRACE_S = 5.0  # for each kind of process to end once the time limit of a stop has passed

# A SIGHUP applies these sections of the settings file; every other change needs a restart.
RELOADABLE = ("archive", "lesions", "reports", "retention", "log")

log = structlog.get_logger()


class Service:
    """The running service: `start` returns when ready, `run` blocks until SIGTERM or SIGINT and drains."""

    def __init__(self, settings: Settings, settings_path: Path | None, allow_untrained: bool) -> None:
        self._state = RunState(settings)
        self._settings_path = settings_path
        self._allow_untrained = allow_untrained
        self._stop_requested = threading.Event()
        self._reload_requested = threading.Event()
        self._parts: ServiceParts

    def start(self) -> None:
        """Build the service and start its threads; it accepts associations when this returns.

        Raises:
            MammodError: a part cannot be built; see `daemon.composition.build_service`.
        """
        self._parts = parts = build_service(self._state, allow_untrained=self._allow_untrained)
        parts.tasks.check_certificates()
        parts.audit.started()
        parts.listener.start()
        parts.dispatcher.start()
        parts.sending.start()
        parts.tasks.start()
        parts.node.on_freed = self._wake_workers
        self._state.heartbeat = time.monotonic()
        self._state.phase = None
        parts.status_server.start()
        gc.collect()
        gc.freeze()  # a later collection that scanned these objects would stop every thread for 0.1 s

    def _wake_workers(self) -> None:
        """Have new work claimed at once: jobs by the dispatcher, reports by the senders."""
        self._parts.dispatcher.wake()
        self._parts.sending.wake()

    def _make_all_due(self, set_back_s: float) -> bool:
        """Make delayed work due after the clock was set back; return False if the ledger fails."""
        archive = self._state.settings.archive
        try:
            freed = self._parts.ledger.transact(lambda connection: make_all_due(connection, archive))
        except SQLAlchemyError as error:
            log.error("ledger not writable after the clock was set back, retrying", error=type(error).__name__)
            return False
        self._parts.tasks.all_now()
        self._wake_workers()
        log.warning("clock set back, delayed work is due now", seconds=round(set_back_s), freed=freed)
        return True

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and stop."""
        clock = ClockWatch()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        self.start()
        # One write: print writes text and newline apart, and another thread's log line could come between.
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sd_notify("READY=1")
        supervised = Supervised(lambda: summary_line(self._parts.ledger))
        listener = self._state.settings.listener
        log.info("ready", port=listener.port, ae_title=listener.ae_title)
        set_back = 0.0
        while not self._stop_requested.wait(supervised.wait_s(MAIN_LOOP_S)):
            self._state.heartbeat = time.monotonic()
            if self._reload_requested.is_set():
                self._reload_requested.clear()
                self._reload_settings()
            set_back += clock.set_back()
            if set_back and self._make_all_due(set_back):
                set_back = 0.0
            supervised.look(alive=not self._parts.monitor.why_not_alive())
        self.stop()
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            # Python would wait for threads that did not end in time; all their state is in the ledger.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requested.set()

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_requested.set()

    def _reload_settings(self) -> None:
        """Read settings file and certificates again; keep the old settings if the file has an error."""
        sd_notify(reloading())
        try:
            new = load_settings(self._settings_path)
            require_archive(new)
        except ConfigurationError as error:
            log.error("settings not reloaded, the old ones stay", reason=str(error))
        else:
            self._apply(new)
        self._parts.listener.reread_certificates()
        self._parts.tasks.check_certificates()
        sd_notify("READY=1")

    def _apply(self, new: Settings) -> None:
        """Replace the settings that a running service can change: `RELOADABLE` and the listener's peers."""
        old, parts = self._state.settings, self._parts
        listener = old.listener.model_copy(update={"peers": new.listener.peers})
        peers_changed = listener != old.listener
        current = old.model_copy(update={"listener": listener})
        changed = [name for name in type(new).model_fields if getattr(new, name) != getattr(current, name)]
        reloaded = [name for name in changed if name in RELOADABLE]
        current = current.model_copy(update={name: getattr(new, name) for name in reloaded})
        self._state.settings = current
        parts.archive.settings = current.archive
        parts.listener.replace_peers(listener.peers)
        logging_setup.configure(current.log)
        parts.listener.reconfigure_log(current.log)
        log.info(
            "settings reloaded",
            changed=[*reloaded, *["listener.peers"] * peers_changed],
            need_restart=[name for name in changed if name not in RELOADABLE],
        )
        parts.sending.wake()
        if "retention" in reloaded:
            parts.tasks.retention_now()

    def stop(self) -> None:
        """Accept nothing more, finish work within [service] shutdown_timeout_s, end every process and thread.

        Unfinished work is in the ledger as if it had not been started.
        """
        parts = self._parts
        timeout_s = self._state.settings.service.shutdown_timeout_s
        left = _time_left(time.monotonic() + timeout_s)
        sd_notify(stopping(timeout_s + 3 * KILL_GRACE_S))
        log.info("stopping")
        self._state.phase = "draining"
        self._stop_requested.set()
        parts.sending.stop()
        parts.listener.stop(left() / 2)  # the other half is for the instances received until then
        drained = parts.dispatcher.stop(left())
        parts.tasks.stop()
        drained &= parts.sending.finish(left)
        parts.decoders.stop(max(left(), KILL_GRACE_S) if drained else 0)
        parts.classifier.stop(max(left(), KILL_GRACE_S) if drained else 0)
        parts.status_server.stop()
        parts.monitor.close()
        parts.node.leave()
        parts.ledger.close()
        parts.audit.stopped()
        log.info("stopped", drained=drained)


def _time_left(end: float) -> Callable[[], float]:
    """Return a function that gives the seconds until `end` (of time.monotonic()), at least 0."""
    return lambda: max(0.0, end - time.monotonic())
