"""The socket of an association: reads ahead in large pieces, within a time limit, and acknowledges at once.

pynetdicom 3.0 reads 4,096 bytes at a time and leaves acknowledgements to the kernel, which delays them: that
costs 44 ms per object and most of the throughput.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import ssl
import struct
import termios
import time
from typing import Any

from pynetdicom.transport import AssociationSocket

from daemon.dimse.pdu import PDU_HEADER

READ_SIZE = 1 << 18  # bytes of an association's buffer, unless a PDU is longer; several PDUs may be read at once
MIN_WAITALL_SIZE = 1 << 12  # bytes of a PDU; for so many the kernel is asked to wait until all are there


def set_timeout(connection: socket.socket, limit_s: float) -> None:
    """Set the socket's timeout in the kernel, unless it is TLS.

    Python's own timeout makes the socket non-blocking, and costs a second system call for every read.
    """
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(limit_s)
        return
    connection.settimeout(None)
    timeval = struct.pack("@ll", int(limit_s), int(limit_s % 1 * 1e6) or int(limit_s < 1))  # 0 would mean no limit
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, timeval)


class UpperLayerSocket(AssociationSocket):
    """pynetdicom's socket with a read buffer and a deadline for every read."""

    socket: socket.socket | None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._buffer = bytearray()  # holds what was received but not read yet, from _start to _end
        self._start = self._end = 0

    @property
    def buffered(self) -> int:
        """How many bytes were received but not read yet."""
        return self._end - self._start

    def recv(self, nr_bytes: int) -> memoryview:
        """Return the next `nr_bytes`, or fewer if the connection ends; they are valid until the next call.

        Raises:
            TimeoutError: not all of them were received within the association's network timeout.
        """
        if self._end - self._start < nr_bytes:
            self._fill(nr_bytes)
        start, self._start = self._start, min(self._start + nr_bytes, self._end)
        return memoryview(self._buffer)[start : self._start]

    def _fill(self, nr_bytes: int) -> None:
        connection, limit = self.socket, self.assoc.network_timeout
        assert connection is not None
        self._make_room(nr_bytes)
        whole = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL
        end = time.monotonic() + limit
        remaining = limit
        try:
            with memoryview(self._buffer) as view:
                while (missing := nr_bytes - (self._end - self._start)) > 0:
                    if whole and missing >= MIN_WAITALL_SIZE:
                        count = connection.recv_into(view[self._end : self._start + nr_bytes], 0, whole)
                    else:  # and what follows, which saves a call
                        count = connection.recv_into(view[self._end :])
                    if count == 0:
                        return
                    self._end += count
                    if self._end - self._start < nr_bytes:
                        remaining = end - time.monotonic()
                        if remaining <= 0:
                            raise TimeoutError
                        if remaining < limit - 1:
                            set_timeout(connection, remaining)
        except BlockingIOError:
            raise TimeoutError from None
        finally:
            if remaining < limit - 1:
                with contextlib.suppress(OSError):
                    set_timeout(connection, limit)
        self._acknowledge_now()

    def _make_room(self, nr_bytes: int) -> None:
        size = nr_bytes + PDU_HEADER.size
        kept = self._buffer[self._start : self._end]
        if len(self._buffer) < size:
            self._buffer = bytearray(max(size, READ_SIZE))  # views of the old one stay valid
        elif kept and self._start + size <= len(self._buffer):
            return
        self._buffer[: len(kept)] = kept
        self._start, self._end = 0, len(kept)

    def send(self, bytestream: bytes) -> None:
        """Send all bytes, and acknowledge what was received."""
        super().send(bytestream)
        self._acknowledge_now()

    def give_up(self) -> None:
        """Make closing reset the connection if the peer has not taken what was sent.

        Otherwise the kernel would keep trying for minutes.
        """
        if self.socket is None:
            return
        with contextlib.suppress(OSError):
            unsent = bytearray(4)
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, unsent)
            if any(unsent):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))

    @property
    def ready(self) -> bool:
        """Whether bytes can be read; by poll, as select takes no file descriptor above 1,023."""
        if self.buffered:
            return True
        if self.socket is None or not self._is_connected:
            return False
        try:
            if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
                return True
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed
            return False

    def _acknowledge_now(self) -> None:
        # The kernel returns to delayed acknowledgements by itself, so this is set again each time. Linux
        # only.
        if self.socket is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
