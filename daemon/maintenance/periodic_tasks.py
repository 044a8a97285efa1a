"""What the service does at intervals: housekeeping, retrieval, certificates, the bundle, samples for metrics.

APScheduler keeps the intervals by the wall clock. `PeriodicTasks.all_now` is the one place that makes up for
a clock that was set back; after one that was set forward, a task runs early, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from config.settings import Settings
from daemon.archive import missing_images
from daemon.archive.client import Archive
from daemon.audit.trail import AuditTrail
from daemon.events import bus
from daemon.ledger import Ledger, jobs
from daemon.maintenance import retention
from daemon.monitoring.history import SAMPLE_S
from daemon.monitoring.monitor import Monitor
from daemon.nodes.membership import Node
from daemon.receiving.intake import Intake
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from daemon.system.tls import expiries, warn_of_ends
from daemon.workers.pinned_bundle import BundleWatch

HOUSEKEEPING_S = 3600
SIZE_LIMIT_S = 300
# The names of duties stand in the ledger, which nodes of an older version share: they must not change.
SIZE_LIMIT_DUTY = "shrink"
RETRIEVAL_S = 5
CERTIFICATES_S = 86_400
BUNDLE_WATCH_S = 60
ASK_ARCHIVE_S = 60
COUNT_SPOOL_S = 600

log = structlog.get_logger()


class PeriodicTasks:
    """A thread that starts each task at its interval, never twice at once.

    Tasks for all nodes run on one at a time. `settings` is called each time, since they can be reloaded.
    `on_ready` is called when jobs may have become ready.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        node: Node,
        spool: Spool,
        archive: Archive,
        settings: Callable[[], Settings],
        intake: Intake,
        audit: AuditTrail,
        bundle_watch: BundleWatch,
        observation: Monitor,
        on_ready: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._node = node
        self._spool = spool
        self._archive = archive
        self._settings = settings
        self._intake = intake
        self._audit = audit
        self._bundle_watch = bundle_watch
        self._observation = observation
        self._on_ready = on_ready
        self.removed = bus.DeletedForRoom()
        self._scheduler = BackgroundScheduler(timezone=UTC)

    def start(self) -> None:
        """Start the scheduler's thread."""
        observed, soon = self._observation, {"next_run_time": datetime.now(UTC)}
        for name, seconds, work, when in (
            ("housekeeping", HOUSEKEEPING_S, self._housekeep, {}),
            ("size-limit", SIZE_LIMIT_S, self._enforce_size_limit, {}),
            ("retrieval", RETRIEVAL_S, self._retrieve, {}),
            ("certificates", CERTIFICATES_S, self.check_certificates, {}),
            ("bundle", BUNDLE_WATCH_S, self._watch_bundle, {}),
            ("sample", SAMPLE_S, observed.sample, soon),
            ("ask-archive", ASK_ARCHIVE_S, observed.probe_archive, {}),
            ("count-spool", COUNT_SPOOL_S, observed.count_spool, soon),
        ):
            once = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
            self._scheduler.add_job(work, "interval", seconds=seconds, id=name, **once, **when)
        self._scheduler.start()

    def stop(self) -> None:
        """Start nothing more; does not wait for tasks that run."""
        self._scheduler.shutdown(wait=False)

    def all_now(self) -> None:
        """Start every task now, after the clock was set back: their next times are too far ahead."""
        for job in self._scheduler.get_jobs():
            with suppress(JobLookupError):
                job.modify(next_run_time=datetime.now(UTC))

    def retention_now(self) -> None:
        """Delete now what changed settings no longer keep."""
        for name in ("housekeeping", "size-limit"):
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    def check_certificates(self) -> None:
        """Warn of certificates that expire soon."""
        warn_of_ends(expiries(self._settings()))

    def _retrieve(self) -> None:
        settings = self._settings()
        if settings.archive.retrieve == "off":
            return
        with self._node.duty("retrieval") as mine:
            if mine:
                self._ask_for_missing(settings)

    def _ask_for_missing(self, settings: Settings) -> None:
        associations: set[str] = set()

        def accept(incoming: ReceivedInstance) -> None:
            associations.add(incoming.association_id)
            self._intake.accept(incoming)

        try:
            missing_images.retrieve_missing(self._ledger, self._archive, settings, accept)
        finally:
            for association in associations:
                self._audit.association_ended(association, is_ours=True)

    def _watch_bundle(self) -> None:
        if found := self._bundle_watch.look():
            log.warning("bundle folder changed; the service keeps the verified bundle", found=found)

    def _housekeep(self) -> None:
        with self._node.duty("housekeeping") as mine:
            if mine:
                retention.delete_orphans(self._ledger, self._spool)
                retention.delete_expired(self._ledger, self._spool, self._settings().retention)
                self._ledger.transact(lambda connection: jobs.promote(connection, None, time.time()))
        self._on_ready()

    def _enforce_size_limit(self) -> None:
        with self._node.duty(SIZE_LIMIT_DUTY) as mine:
            if mine:
                self.removed += retention.enforce_size_limit(self._ledger, self._spool, self._settings().retention)
