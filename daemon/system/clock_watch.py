"""Detects that the wall clock was set back, which would delay what waits for a time in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE_S = 2.0  # NTP's slewing stays far below


class ClockWatch:
    """Compares the wall clock (`time.time` at the time of the call) with the monotonic clock."""

    def __init__(self, wall: Callable[[], float] | None = None, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall or (lambda: time.time()), steady
        self._ahead = self._wall() - self._steady()

    def set_back(self) -> float:
        """Return by how many seconds the wall clock was set back since the last call; 0.0 if it was not.

        Steps forward are ignored: they only make things due early.
        """
        ahead = self._wall() - self._steady()
        back = self._ahead - ahead
        self._ahead = ahead
        return back if back > TOLERANCE_S else 0.0
