"""Back-off: how long to wait before the next attempt, doubled after each failure up to a limit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_DOUBLINGS = 60  # 2 to this power times any pause exceeds every limit; more would overflow a float


@dataclass(frozen=True)
class Backoff:
    """Pauses that begin at `first_s` seconds, double with each attempt, and never exceed `max_s` seconds."""

    first_s: float
    max_s: float

    def pause_s(self, attempt: int) -> float:
        """Return the pause in seconds after failed attempt number `attempt`, counted from 0."""
        return min(self.first_s * 2.0 ** min(attempt, MAX_DOUBLINGS), self.max_s)

    def jittered_pause_s(self, attempt: int, jitter: Callable[[], float] = random.random) -> float:
        """Return between half and the whole of `pause_s(attempt)`, in seconds.

        `jitter` returns a number in 0..1; the default is random, so that peers do not retry in step.
        """
        return self.pause_s(attempt) * (0.5 + 0.5 * jitter())
