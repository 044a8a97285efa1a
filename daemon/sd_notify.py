"""Messages to systemd (sd_notify(3)): readiness, status, stopping, watchdog. Without NOTIFY_SOCKET they do nothing."""

from __future__ import annotations

import os
import socket


def sd_notify(*assignments: str) -> None:
    """Send assignments such as "READY=1"; NOTIFY_SOCKET is a path, or an abstract name that begins with "@"."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.sendto("\n".join(assignments).encode(), address)


def watchdog_interval_s() -> float | None:
    """Half of systemd's watchdog time-out in seconds, None without a watchdog for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 2e6 if microseconds else None
