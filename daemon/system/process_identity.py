"""The identity of a process beyond its id, so that another process can tell that it has exited."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host_name() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def own_identity() -> str:
    """Return this process's boot id, namespace of process ids, id and start time; empty without /proc.

    Together they identify it even after another process got the same id.
    """
    try:
        return f"{_here()}:{os.getpid()}:{_start_ticks(os.getpid())}"
    except OSError:
        return ""


def is_gone(identity: str) -> bool:
    """Return whether the process has certainly exited; False on another machine, or in doubt."""
    here, _, process = identity.partition(":")
    pid, _, start_ticks = process.partition(":")
    try:
        if not pid.isdigit() or here != _here():
            return False
        return _start_ticks(int(pid)) != start_ticks
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_ticks(pid: int) -> str:
    """Return when a process started, in clock ticks since boot (field 22 of proc(5)'s stat).

    The command name in that line may hold blanks and brackets. A zombie counts as exited.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]
