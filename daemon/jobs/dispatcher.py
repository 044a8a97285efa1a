"""The dispatcher: claims ready jobs from the ledger and has a bounded number of them worked on at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog
from sqlalchemy import Connection, Row

from daemon.ledger import Ledger, job_claims
from daemon.nodes.membership import Hold

# Threads only wait for decoders and classifier; this many keep both busy.
JOBS_AT_ONCE = 8
# The ledger is looked at this often even when nobody calls `wake`: jobs become due by time, and by what other nodes do.
POLL_S = 1.0

log = structlog.get_logger()


class Dispatcher:
    """One thread that claims for the node of `hold`, and a pool that works. `do(job)` must bring the job to its next state."""

    def __init__(
        self, ledger: Ledger, hold: Callable[[], Hold], do: Callable[[Row], None], after: Callable[[], None]
    ) -> None:
        self._ledger = ledger
        self._hold = hold
        self._work = do
        self._after = after
        self._pool = ThreadPoolExecutor(JOBS_AT_ONCE, thread_name_prefix="job")
        self._in_flight: dict[int, Future[None]] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="dispatcher", daemon=True)
        self.beat = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """A job may have become ready."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.beat = time.monotonic()
            try:
                self._claim()
            except Exception as error:  # a full disk or a locked ledger passes; the loop must not end
                log.error("jobs cannot be claimed, trying again", error=type(error).__name__)
                self._stopping.wait(POLL_S)
            self._wake.wait(POLL_S)
            self._wake.clear()

    def _claim(self) -> None:
        # Jobs that run in the ledger, under this node, but not here lost their last transition (disk full); they, too, wait
        # for a place.
        self._in_flight = {job_id: future for job_id, future in self._in_flight.items() if not future.done()}
        free = JOBS_AT_ONCE - len(self._in_flight)
        if not free:
            return
        owner, in_flight = self._hold().id, list(self._in_flight)
        with self._ledger.read() as connection:
            if not job_claims.claimable(connection, owner, time.time(), in_flight):
                return

        def transition(connection: Connection) -> Sequence[Row]:
            job_claims.release(connection, owner, in_flight, time.time())
            return job_claims.claim(connection, owner, free, time.time())

        for job in self._ledger.transact(transition):
            self._in_flight[job.id] = self._pool.submit(self._do, job)

    def _do(self, job: Row) -> None:
        try:
            self._work(job)
        except Exception as error:
            log.error(
                "a job's end could not be recorded, it will be done again", job=job.id, error=type(error).__name__
            )
        self._after_work()

    def _after_work(self) -> None:
        self._after()
        self._wake.set()

    def stop(self, limit_s: float) -> bool:
        """Claim nothing more and wait for what is in flight; False when `limit_s` passed first.

        What is unfinished then goes back into the ledger; whatever its thread still does changes nothing there.
        """
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        _, unfinished = wait(self._in_flight.values(), timeout=limit_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        if unfinished:
            late = [job_id for job_id, future in self._in_flight.items() if future in unfinished]
            owner = self._hold().id
            self._ledger.transact(lambda connection: job_claims.return_to_ready(connection, owner, late, time.time()))
            log.warning("jobs do not end in time, they are begun again at the next start", jobs=late)
        return not unfinished
