"""Which process a process id means: so that another on the same machine can tell that one is gone, whoever has its id by now."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host_name() -> str:
    return socket.gethostname()


def own_identity() -> str:
    """This process, by the machine since its last start, the namespace of process ids, the id and when it began.

    Empty where /proc does not say.
    """
    try:
        return f"{_here()}:{os.getpid()}:{_began(os.getpid())}"
    except OSError:
        return ""


def is_gone(identity: str) -> bool:
    """Whether that process certainly has ended; False for one of another machine or container, and wherever in doubt."""
    here, _, process = identity.partition(":")
    pid, _, began = process.partition(":")
    try:
        if not pid.isdigit() or here != _here():
            return False
        return _began(int(pid)) != began
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


def _began(pid: int) -> str:
    """Clock ticks since the machine's start (field 22 of proc(5)'s stat); the command in it may hold blanks and brackets.

    A zombie has ended.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]
