"""Deliver audit messages to a file, or to syslog by UDP (RFC 5426) or TLS (RFC 5425; PS3.15 A.6, A.7).

Each destination has a queue and a thread of its own, so that a receiver that is away never delays the
service. Messages that a full queue cannot hold are counted and logged: an audit trail with a gap says so.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from config.settings import Audit as AuditSettings
from daemon.audit.messages import EventOutcome, Message
from daemon.system.backoff import Backoff
from daemon.system.tls import Credentials, Side

MAX_QUEUE = 10_000  # messages
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 60.0
FLUSH_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10.0
PORTS = {"udp": 514, "tls": 6514}
_FACILITY = 10  # security and authorization messages (PS3.15 A.6)
_SEVERITIES = {
    EventOutcome.SUCCESS: 5,
    EventOutcome.MINOR_FAILURE: 4,
    EventOutcome.SERIOUS_FAILURE: 3,
}  # notice, warning, error

log = structlog.get_logger()


class Destination(Protocol):
    """Where audit messages are kept."""

    def write(self, message: Message) -> None:
        """Write one message.

        Raises:
            OSError, UnicodeError: it was not accepted.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class AuditFile:
    """A file that only this user can read, one message a line.

    Opened for each message, so that it can be rotated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, message: Message) -> None:
        """Append one message."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(message.xml + b"\n")

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def __str__(self) -> str:
        return str(self._path)


class UdpSyslog:
    """Syslog over UDP, one message a datagram."""

    def __init__(self, host: str, port: int, hostname: str) -> None:
        self._address = (host, port)
        self._hostname = hostname

    def write(self, message: Message) -> None:
        """Send one message."""
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as connection:
            connection.sendto(syslog_line(message, self._hostname), address)

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def __str__(self) -> str:
        return f"udp://{self._address[0]}:{self._address[1]}"


class TlsSyslog:
    """Syslog over TLS: messages on one connection, each after its length."""

    def __init__(self, host: str, port: int, hostname: str, credentials: Credentials) -> None:
        self._address = (host, port)
        self._hostname = hostname
        self._credentials = credentials
        self._connection: ssl.SSLSocket | None = None

    def write(self, message: Message) -> None:
        """Send one message; reconnect if the connection was closed."""
        line = syslog_line(message, self._hostname)
        if self._connection is not None and self._is_closed(self._connection):
            self.close()
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.sendall(b"%d %s" % (len(line), line))
        except OSError:
            self.close()
            raise

    def _connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(self._address, timeout=CONNECT_TIMEOUT_S)
        try:
            return self._credentials.context().wrap_socket(raw, server_hostname=self._address[0])
        except BaseException:
            raw.close()
            raise

    @staticmethod
    def _is_closed(connection: ssl.SSLSocket) -> bool:
        """Return whether the receiver has closed the connection; messages sent after that would be lost."""
        connection.settimeout(0)
        try:
            return connection.recv(1) == b""
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True
        finally:
            with suppress(OSError):
                connection.settimeout(CONNECT_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def __str__(self) -> str:
        return f"tls://{self._address[0]}:{self._address[1]}"


def syslog_line(message: Message, hostname: str) -> bytes:
    """Return the message as RFC 5424, with the header of PS3.15 A.6.

    The XML follows a byte order mark, which marks UTF-8 there.
    """
    priority = _FACILITY * 8 + _SEVERITIES[message.outcome]
    at = message.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = f"<{priority}>1 {at} {hostname} mammod {os.getpid()} DICOM+RFC3881 - "
    return head.encode("ascii", "replace") + b"\xef\xbb\xbf" + message.xml


def destinations(settings: AuditSettings, hostname: str) -> list[Destination]:
    """Return the destinations that the settings name.

    Raises:
        ConfigurationError: the TLS files cannot be used.
    """
    found: list[Destination] = []
    if settings.file is not None:
        found.append(AuditFile(settings.file))
    if settings.syslog is not None:
        where = urlsplit(settings.syslog)
        host, port = where.hostname or "", where.port or PORTS[where.scheme]
        if where.scheme == "udp":
            found.append(UdpSyslog(host, port, hostname))
        else:
            assert settings.tls is not None, "the settings ask for it"
            found.append(TlsSyslog(host, port, hostname, Credentials(settings.tls, "audit.tls", Side.CALL)))
    return found


class Delivery:
    """One destination's queue and thread.

    A message is retried, after growing pauses, until it is accepted.
    """

    def __init__(self, destination: Destination, clock: Callable[[], float] = time.monotonic) -> None:
        self.delivered = self.dropped = 0
        self._destination = destination
        self._queue: deque[Message] = deque()
        self._changed = threading.Condition()
        self._stopping_at: float | None = None
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of messages in the queue."""
        return len(self._queue)

    def put(self, message: Message) -> None:
        """Queue one message; if the queue is full, count it as lost."""
        with self._changed:
            if len(self._queue) >= MAX_QUEUE:
                self.dropped += 1
                if self.dropped == 1:
                    log.error("audit queue full, messages are lost", destination=str(self._destination))
                return
            self._queue.append(message)
            self._changed.notify()

    def stop(self) -> None:
        """Deliver queued messages for `FLUSH_TIMEOUT_S` seconds; those left then are counted as lost."""
        with self._changed:
            self._stopping_at = self._clock() + FLUSH_TIMEOUT_S
            self._changed.notify()
        self._thread.join(FLUSH_TIMEOUT_S + CONNECT_TIMEOUT_S)
        self._destination.close()
        if self._queue:
            self.dropped += len(self._queue)
            log.error("audit messages lost", destination=str(self._destination), lost=self.dropped)

    def _run(self) -> None:
        backoff, failures = Backoff(RETRY_FIRST_S, RETRY_MAX_S), 0
        while True:
            with self._changed:
                while not self._queue and self._stopping_at is None:
                    self._changed.wait()
                if not self._queue:
                    return
                message = self._queue[0]
            try:
                self._destination.write(message)
            except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
                if failures == 0:
                    reason = getattr(error, "strerror", None) or type(error).__name__
                    log.warning("audit delivery failed, retrying", destination=str(self._destination), reason=reason)
                pause = backoff.pause_s(failures)
                with self._changed:
                    now = self._clock()
                    if self._stopping_at is not None and now + pause > self._stopping_at:
                        return
                    # Woken by a stop, and not by every message that is queued meanwhile.
                    if self._stopping_at is None:
                        self._changed.wait_for(lambda: self._stopping_at is not None, pause)
                    else:
                        self._changed.wait(pause)
                failures += 1
            else:
                failures = 0
                with self._changed:
                    self._queue.popleft()
                    self.delivered += 1
