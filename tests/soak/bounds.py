"""What a run of the soak is given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bounds:
    """A run's own empty `folder`, the `seed` of all its chances, and the time by which it must have ended
    by itself.
    """

    folder: Path
    seed: int
    ends_at: float  # time.monotonic()

    def left(self) -> float:
        """Seconds left, never below nothing."""
        return max(0.0, self.ends_at - time.monotonic())
