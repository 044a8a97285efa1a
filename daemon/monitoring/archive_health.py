"""Whether the archive answers, by all that was asked of it lately; where nothing was, it is asked (C-ECHO)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import structlog

from daemon.archive.client import Archive
from daemon.errors import ArchiveError
from daemon.events.bus import ArchiveAnswered, ArchiveSilent, Event, ReportSent
from daemon.events.outcomes import StoreOutcomeKind

ASK_AFTER_S = 60.0  # without an answer to anything else

log = structlog.get_logger()


@dataclass(frozen=True)
class Health:
    """`up` is None before anything was asked. Times are seconds since the epoch; `problem` is why it did not answer last."""

    up: bool | None = None
    failures_in_a_row: int = 0
    last_answer: float | None = None
    last_stored: float | None = None
    problem: str | None = None


class ArchiveHealth:
    """Thread-safe. `hear` is to be told what happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._health = Health()

    @property
    def health(self) -> Health:
        return self._health

    def hear(self, event: Event) -> None:
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
            log.warning("the archive does not answer", reason=after.problem)
        elif before.up is False and after.up:
            log.info("the archive answers again", failures=before.failures_in_a_row)

    def ask(self, archive: Archive) -> None:
        """C-ECHO, unless it answered something else a moment ago; what came of it is heard like everything else."""
        last = self._health.last_answer
        # A clock that was set back makes an answer lie in the future.
        if last is None or not 0 <= time.time() - last < ASK_AFTER_S:
            try:
                archive.echo()
            except ArchiveError:
                return  # heard already, and logged when it is news
