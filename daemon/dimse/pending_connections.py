"""Connections on the way to an association: accept, TLS handshake and A-ASSOCIATE-RQ, all in one thread.

A peer that sends nothing, a byte a second, or something other than DICOM, costs an entry in a poll and no
thread. The number of connections is limited, in all and for each address. Beyond the limit the connection
that has waited longest is closed: a well-behaved peer requests its association at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import resource
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from daemon.dimse.pdu import INVALID_PARAMETER, PDU_HEADER, UNEXPECTED_PDU, UNRECOGNIZED_PDU, abort_pdu

MAX_REQUEST_SIZE = 1 << 18  # bytes; 128 presentation contexts with every transfer syntax each have 220,000
BACKLOG = 1024
MAX_ACCEPTED_AT_ONCE = 64  # before other connections get their turn
LOG_INTERVAL_S = 1.0  # closed connections are logged together
# File descriptors below this are left to code that uses select(), such as pynetdicom's own associations.
FIRST_DESCRIPTOR = 1024
_A_ASSOCIATE_RQ = 1

log = structlog.get_logger()

Address = tuple[Any, ...]


@dataclass(frozen=True)
class Limits:
    """Limits of connections without an association yet: how many, how many from one address, how long."""

    connections: int
    per_address: int
    seconds: float


class _ClosedError(Exception):
    """A connection has to be closed, for the reason given; `answer` is sent before."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


class _Waiting:
    """A connection and what was read from it."""

    def __init__(self, connection: socket.socket, address: Address, until: float) -> None:
        self.connection = connection
        self.address = address
        self.until = until
        self.shaking_hands = isinstance(connection, ssl.SSLSocket)
        self.received = bytearray()

    def advance(self) -> bytes | None:
        """Read what was received; return the A-ASSOCIATE-RQ PDU once it is complete, and not a byte more.

        Raises:
            BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError: more is needed.
            _ClosedError: the PDU is not an A-ASSOCIATE-RQ, or the connection ended.
            OSError: the connection broke, or the TLS handshake failed.
        """
        if self.shaking_hands:
            assert isinstance(self.connection, ssl.SSLSocket)
            self.connection.do_handshake()
            self.shaking_hands = False
        while (missing := self._missing()) > 0:
            part = self.connection.recv(missing)
            if not part:
                raise _ClosedError("it ended before its association request was complete" if self.received else "")
            self.received += part
        return bytes(self.received)

    def _missing(self) -> int:
        if len(self.received) < PDU_HEADER.size:
            return PDU_HEADER.size - len(self.received)
        kind, _, length = PDU_HEADER.unpack_from(self.received)
        if length > MAX_REQUEST_SIZE:
            raise _ClosedError(
                f"it announced a PDU of {length} bytes; an association request has at most {MAX_REQUEST_SIZE}",
                abort_pdu(INVALID_PARAMETER),
            )
        if kind != _A_ASSOCIATE_RQ:
            known = 1 < kind <= 7
            raise _ClosedError(
                "it sent something else than an association request",
                abort_pdu(UNEXPECTED_PDU if known else UNRECOGNIZED_PDU),
            )
        return int(PDU_HEADER.size + length - len(self.received))


class Connections:
    """Listens on `address` and passes each connection to `serve` with its address and its A-ASSOCIATE-RQ PDU.

    `serve` gets a blocking socket, must not take long, and owns the socket unless it raises. `tls` is called
    for each connection. `tls_failed` is told the address and reason of each failed TLS handshake.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        *,
        address: tuple[str, int],
        tls: Callable[[], ssl.SSLContext] | None,
        limits: Limits,
        serve: Callable[[socket.socket, Address, bytes], None],
        tls_failed: Callable[[str, str], None] = lambda address, reason: None,
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listening = socket.create_server(address, family=family, backlog=BACKLOG)
        self._listening.setblocking(False)
        self.address: Address = self._listening.getsockname()
        self._tls = tls
        self._tls_failed = tls_failed
        self._limits = limits
        self._serve = serve
        self._waiting: dict[int, _Waiting] = {}  # by file descriptor, the one that has waited longest first
        self._per_address: Counter[str] = Counter()
        self._closed: Counter[tuple[str, str]] = Counter()
        self._logged_at = 0.0
        self._stop, self._stopped = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Start the thread that accepts connections."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection that still waits. Safe to repeat."""
        with contextlib.suppress(OSError):
            self._stop.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """How many connections have not requested an association yet."""
        return len(self._waiting)

    def _run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select(self._poll_timeout()):
                    if key.fileobj is self._stopped:
                        return
                    if key.fileobj is self._listening:
                        self._accept()
                    elif key.fd in self._waiting:  # unless it was closed a moment ago
                        self._advance(self._waiting[key.fd])
                self._close_expired()
                self._log_closed()
        finally:
            self._listening.close()
            for waiting in list(self._waiting.values()):
                self._remove(waiting).close()
            self._log_closed(at_once=True)
            self._selector.close()
            self._stop.close()
            self._stopped.close()

    def _poll_timeout(self) -> float | None:
        """Return in how many seconds there is something to do without any input, None if nothing."""
        now = time.monotonic()
        times = [self._logged_at + LOG_INTERVAL_S] if self._closed else []
        if self._waiting:
            times.append(next(iter(self._waiting.values())).until)
        return max(min(times) - now, 0) if times else None

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and not self._close_oldest("no file descriptor is left"):
                    time.sleep(0.1)  # the connection stays pending and would be offered again at once
                return
            try:
                self._admit(_with_high_descriptor(connection), address)
            except OSError as error:
                self._count_closed(str(address[0]), _reason(error))

    def _admit(self, connection: socket.socket, address: Address) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            connection = self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        host = str(address[0])
        if self._per_address[host] >= self._limits.per_address:
            self._close_oldest(
                f"listener.max_connections_per_address = {self._limits.per_address} wait, this one longest", host
            )
        elif len(self._waiting) >= self._limits.connections:
            self._close_oldest(f"listener.max_connections = {self._limits.connections} wait, this one longest")
        waiting = _Waiting(connection, address, time.monotonic() + self._limits.seconds)
        self._waiting[connection.fileno()] = waiting
        self._per_address[host] += 1
        self._selector.register(connection, selectors.EVENT_READ)
        self._advance(waiting)

    def _advance(self, waiting: _Waiting) -> None:
        try:
            request = waiting.advance()
        except (BlockingIOError, ssl.SSLWantReadError):
            self._selector.modify(waiting.connection, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._selector.modify(waiting.connection, selectors.EVENT_WRITE)
        except (OSError, _ClosedError) as error:
            self._close(waiting, _reason(error), getattr(error, "answer", b""))
            # A peer that merely disconnects has failed no handshake.
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                self._tls_failed(str(waiting.address[0]), _reason(error))
        else:
            assert request is not None
            connection = self._remove(waiting)
            try:
                self._serve(connection, waiting.address, request)
            except Exception as error:  # such as no thread left
                log.error("connection closed", address=str(waiting.address[0]), reason=type(error).__name__)
                connection.close()

    def _close_expired(self) -> None:
        now = time.monotonic()
        while self._waiting and (oldest := next(iter(self._waiting.values()))).until <= now:
            self._close(oldest, f"no association request within {self._limits.seconds:g} s")

    def _close_oldest(self, reason: str, host: str | None = None) -> bool:
        for waiting in self._waiting.values():
            if host in (None, str(waiting.address[0])):
                self._close(waiting, reason)
                return True
        return False

    def _close(self, waiting: _Waiting, reason: str, answer: bytes = b"") -> None:
        connection = self._remove(waiting)
        with contextlib.suppress(OSError):
            if answer and not waiting.shaking_hands:
                connection.send(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(MAX_REQUEST_SIZE)  # unread bytes would make the kernel discard the answer
        connection.close()
        self._count_closed(str(waiting.address[0]), reason)

    def _remove(self, waiting: _Waiting) -> socket.socket:
        del self._waiting[waiting.connection.fileno()]
        host = str(waiting.address[0])
        self._per_address[host] -= 1
        if not self._per_address[host]:
            del self._per_address[host]
        self._selector.unregister(waiting.connection)
        return waiting.connection

    def _count_closed(self, host: str, reason: str) -> None:
        if reason:  # none for a connection without a byte, such as a load balancer's check
            self._closed[host, reason] += 1

    def _log_closed(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._closed and (at_once or now - self._logged_at >= LOG_INTERVAL_S):
            for (host, reason), count in self._closed.items():
                log.warning("connection closed before an association", address=host, reason=reason, count=count)
            self._closed.clear()
            self._logged_at = now


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of open files by `count` above 1,024, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FIRST_DESCRIPTOR + count
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _with_high_descriptor(connection: socket.socket) -> socket.socket:
    try:
        descriptor = fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    except OSError:  # no such file descriptor is left
        return connection
    moved = socket.socket(fileno=descriptor)
    connection.close()
    return moved


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error.strerror or type(error).__name__}"
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
