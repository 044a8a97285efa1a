"""The dispatcher: it claims ready jobs from the ledger and runs a bounded number of them at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog
from sqlalchemy import Connection

from daemon.ledger import Ledger, job_claims
from daemon.ledger.records import Job
from daemon.nodes.membership import Hold
from daemon.system.background_loop import BackgroundLoop

MAX_JOBS = 8  # at once; their threads only wait for decoders and classifier, and keep both busy
POLL_S = 1.0  # without a `wake`: jobs also become due by time, and by what other nodes do

log = structlog.get_logger()


class Dispatcher:
    """One thread that claims jobs for the node of `hold`, and a pool of threads that run them.

    `run_job(job)` must bring the job to its next state; `after` is called after each job.
    """

    def __init__(
        self, ledger: Ledger, hold: Callable[[], Hold], run_job: Callable[[Job], None], after: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._hold = hold
        self._run_job = run_job
        self._after = after
        self._pool = ThreadPoolExecutor(MAX_JOBS, thread_name_prefix="job")
        self._in_flight: dict[int, Future[None]] = {}
        self._loop = BackgroundLoop("dispatcher", self._claim, "jobs cannot be claimed, retrying", POLL_S)

    @property
    def beat(self) -> float:
        """Return when the dispatcher last looked for jobs, as `time.monotonic`."""
        return self._loop.beat

    def start(self) -> None:
        """Start to claim and run jobs."""
        self._loop.start()

    def wake(self) -> None:
        """Look for jobs now, as one may have become ready."""
        self._loop.wake()

    def _claim(self) -> float:
        """Claim as many jobs as there are free threads; return the seconds until the next look."""
        # Jobs that run in the ledger under this node, but not here, lost their last transition (disk full).
        # They wait for a free thread, too.
        self._in_flight = {job_id: future for job_id, future in self._in_flight.items() if not future.done()}
        free = MAX_JOBS - len(self._in_flight)
        if not free:
            return POLL_S
        owner, in_flight = self._hold().id, list(self._in_flight)
        with self._ledger.read() as connection:
            if not job_claims.claimable(connection, owner, time.time(), in_flight):
                return POLL_S

        def transition(connection: Connection) -> Sequence[Job]:
            job_claims.release(connection, owner, in_flight, time.time())
            return job_claims.claim(connection, owner, free, time.time())

        for job in self._ledger.transact(transition):
            self._in_flight[job.id] = self._pool.submit(self._run, job)
        return POLL_S

    def _run(self, job: Job) -> None:
        try:
            self._run_job(job)
        except Exception as error:
            log.error("job outcome not recorded, it will be run again", job=job.id, error=type(error).__name__)
        self._after_work()

    def _after_work(self) -> None:
        self._after()
        self.wake()

    def stop(self, limit_s: float) -> bool:
        """Claim nothing more and wait for the jobs in flight; return False if `limit_s` passed first.

        Unfinished jobs then become ready in the ledger again; whatever their threads still do changes nothing
        there.
        """
        self._loop.stop()
        self._loop.thread.join()
        _, unfinished = wait(self._in_flight.values(), timeout=limit_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        if unfinished:
            unfinished_ids = [job_id for job_id, future in self._in_flight.items() if future in unfinished]
            owner = self._hold().id
            self._ledger.transact(
                lambda connection: job_claims.return_to_ready(connection, owner, unfinished_ids, time.time())
            )
            log.warning("jobs unfinished at shutdown, they run again at the next start", jobs=unfinished_ids)
        return not unfinished
