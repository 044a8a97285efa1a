"""Whether our ports are free, and if not, who has them."""

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
    """The process that listens on a port; nothing is known of another user's."""

    pid: int | None
    name: str = ""

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid} ({self.name})"


def port_findings(settings: Settings) -> Iterator[Finding]:
    """The listener's and the status page's port. Those of the service itself, while it runs under these settings, are good."""
    ports = (
        ("listener", settings.listener.host, settings.listener.port, "listener.port"),
        ("status port", settings.status.host, settings.status.port, "status.port"),
    )
    running = live(settings.status) is not None
    service = holder(settings.status.port) if running else None
    for subject, host, port, key in ports:
        by = holder(port)
        if running and by is not None and by == service:
            yield Finding(subject, True, f"{host}:{port} is held by the service, which runs ({by})")
        else:
            yield _free(subject, host, port, key, by)


def _free(subject: str, host: str, port: int, key: str, by: Holder | None) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(subject, False, f"port {port} needs a privilege (below 1024); set {key} to 1024 or above")
        except socket.gaierror:
            return Finding(
                subject, False, f"{host} is no address; set {key.replace('port', 'host')} to one, or 0.0.0.0"
            )
        except OSError as error:
            if by is not None:
                what = f"is taken by {by}; end that, or set {key} to another port"
            elif error.errno == errno.EADDRNOTAVAIL:
                what = f"is no address of this machine; set {key.replace('port', 'host')} to one, or 0.0.0.0"
            else:
                what = f"cannot be bound ({error.strerror}); set {key} to another port"
            return Finding(subject, False, f"{host}:{port} {what}")
    return Finding(subject, True, f"{host}:{port} is free")


def holder(port: int) -> Holder | None:
    """Who listens on a TCP port of this machine, from /proc; None where nobody does."""
    sockets = set(_listening(port))
    if not sockets:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return Holder(int(process.name), (process / "comm").read_text().strip())
    return Holder(None)


def _listening(port: int) -> Iterator[str]:
    """The sockets that listen on the port, as /proc/PID/fd names them."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
