"""Connections on their way to an association: accepted, TLS handshake done, A-ASSOCIATE-RQ read, all in one thread.

A peer that says nothing, or a byte a second, or something that is no DICOM, costs a place in a poll and no thread. Places
are limited in all and for each address; where they run out, the connection that has waited longest goes, since a peer
that means well asks for its association at once.
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

LONGEST_REQUEST = 1 << 18  # bytes; 128 presentation contexts with every transfer syntax each have 220,000
BACKLOG = 1024
ACCEPTED_AT_ONCE = 64  # before others get their turn
TOLD_EVERY_S = 1.0  # what was closed is logged together
# Descriptors below this are left to code that uses select(), such as pynetdicom's own associations.
FIRST_DESCRIPTOR = 1024
_A_ASSOCIATE_RQ = 1

log = structlog.get_logger()

Address = tuple[Any, ...]


@dataclass(frozen=True)
class Limits:
    """Connections that have not asked for an association yet: how many in all and from one address, and for how long."""

    connections: int
    per_address: int
    seconds: float


class _ClosedError(Exception):
    """A connection is closed, with the reason; `answer` goes out before."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


class _Waiting:
    """One connection and what was read from it."""

    def __init__(self, connection: socket.socket, address: Address, until: float) -> None:
        self.connection = connection
        self.address = address
        self.until = until
        self.shaking_hands = isinstance(connection, ssl.SSLSocket)
        self.received = bytearray()

    def advance(self) -> bytes | None:
        """Read what is there; the A-ASSOCIATE-RQ PDU once it is complete, not a byte more.

        Raises:
            BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError: more is needed.
            _ClosedError: it is not one, or the connection ended.
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
        if length > LONGEST_REQUEST:
            raise _ClosedError(
                f"it announced a PDU of {length} bytes; an association request has at most {LONGEST_REQUEST}",
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
    """Listens on `address` and hands each connection to `serve` with its address and its A-ASSOCIATE-RQ PDU.

    `serve` gets the socket in blocking mode, must not take long, and owns the socket unless it raises. `tls` is asked for each
    connection. `tls_failed` is told the address and reason of each TLS handshake that failed.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
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
        self._waiting: dict[int, _Waiting] = {}  # by descriptor, the one that has waited longest first
        self._per_address: Counter[str] = Counter()
        self._closed: Counter[tuple[str, str]] = Counter()
        self._told = 0.0
        self._stop, self._stopped = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection that still waits. Harmless when repeated."""
        with contextlib.suppress(OSError):
            self._stop.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Connections that have not asked for an association yet."""
        return len(self._waiting)

    def _run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is self._stopped:
                        return
                    if key.fileobj is self._listening:
                        self._accept()
                    elif key.fd in self._waiting:  # and not closed a moment ago
                        self._advance(self._waiting[key.fd])
                self._expire()
                self._tell()
        finally:
            self._listening.close()
            for waiting in list(self._waiting.values()):
                self._forget(waiting).close()
            self._tell(at_once=True)
            self._selector.close()
            self._stop.close()
            self._stopped.close()

    def _patience(self) -> float | None:
        """Seconds until there is something to do even if nothing comes."""
        now = time.monotonic()
        times = [self._told + TOLD_EVERY_S] if self._closed else []
        if self._waiting:
            times.append(next(iter(self._waiting.values())).until)
        return max(min(times) - now, 0) if times else None

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and not self._close_oldest("no file descriptor is left"):
                    time.sleep(0.1)  # the connection stays pending, and would be offered again at once
                return
            try:
                self._admit(_with_high_descriptor(connection), address)
            except OSError as error:
                self._note(str(address[0]), _reason(error))

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
            # One that merely goes away again breaks no rule.
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                self._tls_failed(str(waiting.address[0]), _reason(error))
        else:
            assert request is not None
            connection = self._forget(waiting)
            try:
                self._serve(connection, waiting.address, request)
            except Exception as error:  # such as a thread that cannot be started
                log.error("connection closed", address=str(waiting.address[0]), reason=type(error).__name__)
                connection.close()

    def _expire(self) -> None:
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
        connection = self._forget(waiting)
        with contextlib.suppress(OSError):
            if answer and not waiting.shaking_hands:
                connection.send(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(LONGEST_REQUEST)  # what is left unread would take the answer away from the peer
        connection.close()
        self._note(str(waiting.address[0]), reason)

    def _forget(self, waiting: _Waiting) -> socket.socket:
        del self._waiting[waiting.connection.fileno()]
        host = str(waiting.address[0])
        self._per_address[host] -= 1
        if not self._per_address[host]:
            del self._per_address[host]
        self._selector.unregister(waiting.connection)
        return waiting.connection

    def _note(self, host: str, reason: str) -> None:
        if reason:  # a connection that ended without a byte, such as a load balancer's check, is nothing to tell
            self._closed[host, reason] += 1

    def _tell(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._closed and (at_once or now - self._told >= TOLD_EVERY_S):
            for (host, reason), count in self._closed.items():
                log.warning("connection closed before an association", address=host, reason=reason, count=count)
            self._closed.clear()
            self._told = now


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of open files, mostly 1,024, by `count` as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FIRST_DESCRIPTOR + count
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _with_high_descriptor(connection: socket.socket) -> socket.socket:
    try:
        descriptor = fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    except OSError:  # there are no more of those
        return connection
    moved = socket.socket(fileno=descriptor)
    connection.close()
    return moved


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error.strerror or type(error).__name__}"
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
