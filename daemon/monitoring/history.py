"""The last hour in this process's memory, for the plots of the status page. Gone with the process: state lives in the ledger."""

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
MOST_TIMES = 5000  # of one stage; a busy service's last hour may hold more, then the newest count


@dataclass(frozen=True)
class Sample:
    """The backlog at a time (seconds since the epoch), and how many there had been by then since the start."""

    at: float
    backlog: Mapping[str, int]
    instances: int
    lesions: int
    reports: int


@dataclass(frozen=True)
class Latency:
    """Of one stage within the last hour, in seconds."""

    count: int
    p50: float
    p95: float


class History:
    """Thread-safe. `hear` and `hear_stage` are to be told what happens, `sample` is to be called every `SAMPLE_S`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque(maxlen=int(SPAN_S / SAMPLE_S) + 1)
        self._times: dict[Stage, deque[tuple[float, float]]] = {stage: deque(maxlen=MOST_TIMES) for stage in Stage}
        self.instances = self.lesions = self.reports = 0

    def hear(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, InstanceAccepted):
                self.instances += 1
            elif isinstance(event, JobAttempted) and event.outcome is JobOutcome.CLASSIFIED:
                self.lesions += event.lesions
            elif isinstance(event, ReportSent) and event.outcome is StoreOutcomeKind.STORED:
                self.reports += 1

    def hear_stage(self, took: StageTiming) -> None:
        if took.seconds is not None:
            with self._lock:
                self._times[took.stage].append((time.monotonic(), took.seconds))

    def sample(self, pressing: UrgentWork, now: float) -> None:
        backlog = {state.value: pressing.jobs[state].count for state in UNFINISHED}
        with self._lock:
            self._samples.append(Sample(now, backlog, self.instances, self.lesions, self.reports))

    def samples(self) -> list[Sample]:
        with self._lock:
            return list(self._samples)

    def latencies(self) -> dict[Stage, Latency | None]:
        """None: the stage was not passed within the hour."""
        since = time.monotonic() - SPAN_S
        with self._lock:
            times = {stage: [took for at, took in told if at >= since] for stage, told in self._times.items()}
        return {stage: _latency(took) for stage, took in times.items()}


def _latency(took: Sequence[float]) -> Latency | None:
    if not took:
        return None
    ordered = sorted(took)
    return Latency(len(ordered), percentile(ordered, 0.5), percentile(ordered, 0.95))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: the smallest that at least `share` of them do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]
