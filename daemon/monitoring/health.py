"""Decide whether the service is alive (/healthz) and ready (/readyz), with reasons in plain words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from config.errors import MammodError
from daemon.ledger import Ledger
from daemon.ledger.schema import jobs

MAX_SILENCE_S = 60.0  # a loop without a heartbeat for longer is stuck
LEDGER_TIMEOUT_S = 5.0  # for a write that changes nothing


def not_alive(beats: Mapping[str, float]) -> list[str]:
    """Return why the service should be restarted; `beats` holds seconds since each loop's last heartbeat."""
    return [
        f"the {loop.replace('_', ' ')} has not moved for {seconds:.0f} s: restart the service, and keep its log"
        for loop, seconds in beats.items()
        if seconds > MAX_SILENCE_S
    ]


def not_ready(
    phase: str | None, check_room: Callable[[], None], ledger_problem: str | None, workers: Mapping[str, str | None]
) -> list[str]:
    """Return why senders should come back later; empty if the service is ready.

    `phase` is "starting", "draining" or None; `workers` maps each kind of process to its problem or None.
    """
    reasons = [f"the service is {phase}"] if phase else []
    try:
        check_room()
    except MammodError as error:
        reasons.append(str(error))
    except OSError as error:
        reasons.append(f"the spool cannot be read: {error.strerror}")
    if ledger_problem:
        reasons.append(ledger_problem)
    reasons += [f"{kind}s: {trouble}" for kind, trouble in workers.items() if trouble]
    return reasons


class LedgerProbe:
    """Test in a thread whether the ledger takes a write: a stuck ledger cannot block the answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def problem(self, limit_s: float = LEDGER_TIMEOUT_S) -> str | None:
        """Return why the ledger takes no write, or None if it does."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._try, name="ledger-probe", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(limit_s)
        if thread.is_alive():
            return f"the ledger did not take a write within {limit_s:g} s"
        return self._problem

    def _try(self) -> None:
        began = time.monotonic()
        try:
            nothing = update(jobs).where(jobs.c.id == -1).values(revision=jobs.c.revision)
            self._ledger.transact(lambda connection: connection.execute(nothing))
        except SQLAlchemyError as error:
            self._problem = (
                f"the ledger cannot be written ({type(error).__name__}, after {time.monotonic() - began:.1f} s)"
            )
        else:
            self._problem = None
