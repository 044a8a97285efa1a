"""Whether the service lives (/healthz) and whether it can accept work (/readyz), each with the reasons why not in plain words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from config.errors import MammodError
from daemon.ledger import Ledger
from daemon.ledger.schema import jobs

SILENT_S = 60.0  # a loop that was not alive for so long is stuck
LEDGER_LIMIT_S = 5.0  # for a write that changes nothing


def not_alive(beats: Mapping[str, float]) -> list[str]:
    """Why the service should be restarted; `beats` are the seconds since each of its loops was last alive."""
    return [
        f"the {loop.replace('_', ' ')} has not moved for {seconds:.0f} s: restart the service, and keep its log"
        for loop, seconds in beats.items()
        if seconds > SILENT_S
    ]


def not_ready(
    phase: str | None, check_room: Callable[[], None], ledger_problem: str | None, workers: Mapping[str, str | None]
) -> list[str]:
    """Why senders should come back later; `phase` is "starting" or "draining", `workers` the trouble of each kind or None."""
    reasons = [f"the service is {phase}"] if phase else []
    try:
        check_room()
    except MammodError as error:
        reasons.append(str(error))
    except OSError as error:
        reasons.append(f"the spool cannot be looked at: {error.strerror}")
    if ledger_problem:
        reasons.append(ledger_problem)
    reasons += [f"{kind}s: {trouble}" for kind, trouble in workers.items() if trouble]
    return reasons


class LedgerProbe:
    """Tries whether the ledger takes a write, in a thread of its own: one that is stuck must not hold up the answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def problem(self, limit_s: float = LEDGER_LIMIT_S) -> str | None:
        """Why it takes none; None where it does."""
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
