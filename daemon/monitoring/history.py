"""Keep the last hour in memory for the plots of the status page; it is lost on exit."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.events.bus import Event, InstanceAccepted, JobAttempted, JobOutcome, ReportSent
from daemon.events.outcomes import StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming
from daemon.ledger.schema import UNFINISHED
from daemon.ledger.summary import UrgentWork

SPAN_S = 3600.0
SAMPLE_S = 10.0
MAX_TIMINGS = 5000  # per stage; in a busier hour only the newest count


@dataclass(frozen=True)
class Sample:
    """The backlog at one time (seconds since the epoch), and the totals since the start until then."""

    at: float
    backlog: Mapping[str, int]
    instances: int
    lesions: int
    reports: int


@dataclass(frozen=True)
class Latency:
    """Duration of one stage within the last hour, in seconds."""

    count: int
    p50: float
    p95: float


class History:
    """Totals, backlog samples and stage durations. Thread-safe.

    `record` and `record_stage` take events and timings; call `sample` every `SAMPLE_S`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque(maxlen=int(SPAN_S / SAMPLE_S) + 1)
        self._times: dict[Stage, deque[tuple[float, float]]] = {stage: deque(maxlen=MAX_TIMINGS) for stage in Stage}
        self.instances = self.lesions = self.reports = 0

    def record(self, event: Event) -> None:
        """Count accepted instances, classified lesions and stored reports."""
        with self._lock:
            if isinstance(event, InstanceAccepted):
                self.instances += 1
            elif isinstance(event, JobAttempted) and event.outcome is JobOutcome.CLASSIFIED:
                self.lesions += event.lesions
            elif isinstance(event, ReportSent) and event.outcome is StoreOutcomeKind.STORED:
                self.reports += 1

    def record_stage(self, timing: StageTiming) -> None:
        """Keep the duration of one passage of a stage."""
        if timing.seconds is not None:
            with self._lock:
                self._times[timing.stage].append((time.monotonic(), timing.seconds))

    def sample(self, urgent: UrgentWork, now: float) -> None:
        """Add a sample of the backlog at `now` (seconds since the epoch)."""
        backlog = {state.value: urgent.jobs[state].count for state in UNFINISHED}
        with self._lock:
            self._samples.append(Sample(now, backlog, self.instances, self.lesions, self.reports))

    def samples(self) -> list[Sample]:
        """Return the samples of the last hour, oldest first."""
        with self._lock:
            return list(self._samples)

    def latencies(self) -> dict[Stage, Latency | None]:
        """Return the latency of each stage; None if no passage ended within the last hour."""
        since = time.monotonic() - SPAN_S
        with self._lock:
            recent = {stage: [seconds for at, seconds in kept if at >= since] for stage, kept in self._times.items()}
        return {stage: _latency(durations) for stage, durations in recent.items()}


def _latency(durations: Sequence[float]) -> Latency | None:
    if not durations:
        return None
    ordered = sorted(durations)
    return Latency(len(ordered), percentile(ordered, 0.5), percentile(ordered, 0.95))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the smallest that a fraction `share` does not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]
