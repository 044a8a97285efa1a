"""Check that our ports are free, and find the process that holds one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.monitoring.status_report import live

_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port; pid None if it belongs to another user."""

    pid: int | None
    name: str = ""

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid} ({self.name})"


def port_findings(settings: Settings) -> Iterator[Finding]:
    """Check the ports of listener and status page; a port held by the running service itself is good."""
    ports = (
        ("listener", settings.listener.host, settings.listener.port, "listener.port"),
        ("status port", settings.status.host, settings.status.port, "status.port"),
    )
    running = live(settings.status) is not None
    service = holder(settings.status.port) if running else None
    for subject, host, port, key in ports:
        found = holder(port)
        if running and found is not None and found == service:
            yield Finding(subject, True, f"{host}:{port} is held by the running service ({found})")
        else:
            yield _free(subject, host, port, key, found)


def _free(subject: str, host: str, port: int, key: str, found: Holder | None) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(
                subject, False, f"port {port} is below 1024 and needs a privilege; set {key} to 1024 or above"
            )
        except socket.gaierror:
            return Finding(
                subject, False, f"{host} is not an address; set {key.replace('port', 'host')} to one, or 0.0.0.0"
            )
        except OSError as error:
            if found is not None:
                problem = f"is in use by {found}; stop that, or set {key} to another port"
            elif error.errno == errno.EADDRNOTAVAIL:
                problem = f"is not an address of this machine; set {key.replace('port', 'host')} to one, or 0.0.0.0"
            else:
                problem = f"cannot be bound ({error.strerror}); set {key} to another port"
            return Finding(subject, False, f"{host}:{port} {problem}")
    return Finding(subject, True, f"{host}:{port} is free")


def holder(port: int) -> Holder | None:
    """Return the process that listens on a TCP port of this machine, from /proc, or None."""
    sockets = set(_listening(port))
    if not sockets:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or ended meanwhile
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return Holder(int(process.name), (process / "comm").read_text().strip())
    return Holder(None)


def _listening(port: int) -> Iterator[str]:
    """Yield the sockets that listen on the port, as named in /proc/PID/fd."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
