"""Messages to systemd (sd_notify(3)): readiness, status, stopping, watchdog; no-ops without NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

STATUS_S = 10.0


def sd_notify(*assignments: str) -> None:
    """Send assignments such as "READY=1" to NOTIFY_SOCKET, a path or an abstract name ("@...")."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        # A missing receiver (systemd itself is being upgraded) is no reason to exit.
        notify.sendto("\n".join(assignments).encode(), address)


def reloading() -> str:
    """Return RELOADING=1 with the time that Type=notify-reload expects; READY=1 ends it."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping(within_s: float) -> str:
    """Return STOPPING=1 and the time that stopping may take, whatever TimeoutStopSec= says."""
    return f"STOPPING=1\nSTATUS=finishing what is under way\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}"


def watchdog_interval_s() -> float | None:
    """Return half of systemd's watchdog time-out in seconds, or None without a watchdog for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 2e6 if microseconds else None


class Supervised:
    """What the main loop tells systemd while it runs: it feeds the watchdog and updates the status line."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._watchdog_s = watchdog_interval_s()
        self._fed = self._described = float("-inf")
        self._told = bool(os.environ.get("NOTIFY_SOCKET"))

    def wait_s(self, at_most: float) -> float:
        """Return how long the main loop may sleep, at most `at_most` seconds."""
        return min(at_most, self._watchdog_s or at_most)

    def look(self, alive: bool) -> None:
        """Notify systemd if it is time to; call it once in each turn of the main loop."""
        if not self._told:
            return
        now = time.monotonic()
        if self._watchdog_s and alive and now - self._fed >= self._watchdog_s / 2:
            sd_notify("WATCHDOG=1")
            self._fed = now
        if now - self._described >= STATUS_S:
            sd_notify(f"STATUS={self._describe()}")
            self._described = now
