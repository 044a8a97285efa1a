"""Track whether the archive answers, from every request to it; send a C-ECHO if there was none lately."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import structlog

from daemon.archive.client import Archive
from daemon.errors import ArchiveError
from daemon.events.bus import ArchiveAnswered, ArchiveSilent, Event, ReportSent
from daemon.events.outcomes import StoreOutcomeKind

ECHO_AFTER_S = 60.0  # since the last answer to any request

log = structlog.get_logger()


@dataclass(frozen=True)
class Health:
    """State of the archive; `up` is None before the first request.

    Times are seconds since the epoch; `problem` is why the last request got no answer.
    """

    up: bool | None = None
    failures_in_a_row: int = 0
    last_answer: float | None = None
    last_stored: float | None = None
    problem: str | None = None


class ArchiveHealth:
    """Archive state built from events, which `record` takes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._health = Health()

    @property
    def health(self) -> Health:
        """Return the current state."""
        return self._health

    def record(self, event: Event) -> None:
        """Update the state from an event; log when the archive stops or starts answering."""
        now = time.time()
        with self._lock:
            before = self._health
            if isinstance(event, ArchiveAnswered):
                self._health = replace(before, up=True, failures_in_a_row=0, last_answer=now, problem=None)
            elif isinstance(event, ArchiveSilent):
                failures = before.failures_in_a_row + 1
                self._health = replace(before, up=False, failures_in_a_row=failures, problem=event.reason)
            elif isinstance(event, ReportSent) and event.outcome is StoreOutcomeKind.STORED:
                self._health = replace(before, last_stored=now)
            after = self._health
        if before.up is not False and after.up is False:
            log.warning("archive does not answer", reason=after.problem)
        elif before.up is False and after.up:
            log.info("archive answers again", failures=before.failures_in_a_row)

    def probe(self, archive: Archive) -> None:
        """Send a C-ECHO unless the archive answered lately; the result arrives as an event like any other."""
        last = self._health.last_answer
        # A clock that was set back makes an answer lie in the future.
        if last is None or not 0 <= time.time() - last < ECHO_AFTER_S:
            try:
                archive.echo()
            except ArchiveError:
                return  # recorded by its event, and logged if the state changed
