"""The upper layer (PS3.8) of an accepted association: pynetdicom's state machine on a socket that is waited for.

pynetdicom 3.0 leaves these open, each is closed by one small override below:
- its threads look for work a thousand times a second: here they sleep until there is some, so an idle association costs nothing;
- lengths in an association request that reach beyond it are taken for what is there: here it is refused;
- an association that ends for its protocol version or a PDU out of state leaves no word: here it is logged;
- a PDU that announces 2 GiB, or that comes a byte a minute, is waited for: here the association ends;
- requests that are sent without waiting for an answer pile up: here nothing more is read until some are answered;
- its timers follow the clock of the day, which may be set back: here they do not;
- delayed acknowledgements and 4,096-byte reads cost 44 ms per object and most of the throughput: here they are acknowledged at
  once and read in large pieces, and data go from the buffer they were received into to their file without another copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

from daemon.dimse.pdu import (
    A_ASSOCIATE_RQ,
    INVALID_PARAMETER,
    P_DATA_TF,
    PDU_HEADER,
    UNEXPECTED_PDU,
    abort_pdu,
    check_request,
    fragments,
)

READ_SIZE = 1 << 18  # bytes of an association's buffer, unless a PDU is longer; several PDUs may be read at once
WORTH_WAITING_FOR = 1 << 12  # bytes; for so many of one PDU the kernel is asked to wait until they are all there
LONGEST_PDU = (1 << 20) + (1 << 16)  # bytes; [listener] max_pdu goes to 1 MiB, and some senders exceed it by a header
MAX_UNANSWERED = 8  # requests; no asynchronous operations are negotiated, so an honest sender has one
# What is received, by pynetdicom's names of events (PS3.8 table 9-10).
_RECEIVED = {
    "Evt3": "A-ASSOCIATE-AC", "Evt4": "A-ASSOCIATE-RJ", "Evt6": "A-ASSOCIATE-RQ",
    "Evt10": "P-DATA-TF", "Evt12": "A-RELEASE-RQ", "Evt13": "A-RELEASE-RP",
}  # fmt: skip


class WakingQueue(queue.Queue[Any]):
    """A queue that says when something was put into it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wake()


class _Timer(Timer):
    """pynetdicom's timer by the monotonic clock."""

    _start_time: float | None
    _end_time: float | None

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def runs(self) -> bool:
        return self._start_time is not None and self._end_time is None

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        return float(self.timeout - ((self._end_time or time.monotonic()) - self._start_time))


class Wakeup:
    """Something that a thread waits for together with a socket, and that other threads may set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.eventfd_write(self._descriptor, 1)

    def wait(self, connection: socket.socket | None, limit_s: float | None) -> None:
        """Until it is set, `connection` can be read, or the limit passes; clears it."""
        poll = select.poll()
        if self._descriptor is not None:
            poll.register(self._descriptor, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        poll.poll(None if limit_s is None else max(limit_s, 0) * 1000 + 1)
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._descriptor is not None:
                os.eventfd_read(self._descriptor)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def set_timeout(connection: socket.socket, limit_s: float) -> None:
    """By the kernel, where it can be: a socket with a timeout of Python's is asked twice for everything, and never waits."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(limit_s)
        return
    connection.settimeout(None)
    timeval = struct.pack("@ll", int(limit_s), int(limit_s % 1 * 1e6) or int(limit_s < 1))  # 0 would be no limit
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, timeval)


class UpperLayerSocket(AssociationSocket):
    socket: socket.socket | None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._buffer = bytearray()  # holds what was received and not taken yet, between these two
        self._start = self._end = 0

    @property
    def buffered(self) -> int:
        """Bytes that were received already."""
        return self._end - self._start

    def recv(self, nr_bytes: int) -> memoryview:
        """Exactly `nr_bytes`, or fewer where the connection ends. They lie in the buffer, until the next call.

        Raises:
            TimeoutError: they did not come within the association's network timeout, all of them together.
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
                    if whole and missing >= WORTH_WAITING_FOR:
                        count = connection.recv_into(view[self._end : self._start + nr_bytes], 0, whole)
                    else:  # with what follows, so that it costs no call of its own
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
            self._buffer = bytearray(max(size, READ_SIZE))  # what is still seen of the old one stays as it is
        elif kept and self._start + size <= len(self._buffer):
            return
        self._buffer[: len(kept)] = kept
        self._start, self._end = 0, len(kept)

    def send(self, bytestream: bytes) -> None:
        super().send(bytestream)
        self._acknowledge_now()

    def give_up(self) -> None:
        """A peer that has not taken what was sent to it will not: closing resets, or the kernel would try on for minutes."""
        if self.socket is None:
            return
        with contextlib.suppress(OSError):
            unsent = bytearray(4)
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, unsent)
            if any(unsent):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))

    @property
    def ready(self) -> bool:
        """Whether bytes can be read; by poll, as select takes no descriptor above 1,023."""
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
        # The kernel falls back to delayed acknowledgements by itself, so this is asked for again each time. Linux only.
        if self.socket is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class UpperLayer(DULServiceProvider):
    """Reads and writes the PDUs of one association in a thread of its own; `request` is its A-ASSOCIATE-RQ PDU, read already."""

    socket: UpperLayerSocket

    def __init__(self, association: Any, request: bytes) -> None:
        super().__init__(association)
        self.daemon = True  # a peer that says nothing must not keep the process from ending
        self.wakeup = Wakeup()
        self.ended = threading.Event()
        self._request: bytes | None = request
        self._told = False
        self.event_queue = WakingQueue(self.wakeup.set)
        self.to_provider_queue = WakingQueue(self.wakeup.set)
        self.to_user_queue = WakingQueue(association.wake)
        self._idle_timer, self.artim_timer = _Timer(60), _Timer(30)  # until the association sets them

    def kill_dul(self) -> None:
        super().kill_dul()
        self.wakeup.set()

    def run_reactor(self) -> None:
        try:
            self._run()
        except Exception:  # PDUs that pynetdicom's state machine does not expect
            self.tell_end("association aborted", "protocol error: a PDU that cannot be understood here")
            with contextlib.suppress(Exception):
                self.socket.send(abort_pdu(UNEXPECTED_PDU))
            self.kill_dul()
            self.assoc.disconnect()
            self.to_user_queue.put(None)  # wakes the association, if it still waits for a request
        finally:
            self.ended.set()
            self.assoc.wake()

    def _run(self) -> None:
        self._idle_timer.start()
        self.assoc._dul_ready.set()
        while not self._kill_thread:
            if self.artim_timer.expired:
                self.event_queue.put("Evt18")  # ARTIM timer expired
            # Either a primitive is sent, by the state machine, or a PDU is received.
            if not self._process_recv_primitive() and self._is_transport_event():
                self._idle_timer.restart()
                if self.event_queue.empty():
                    continue  # data that were taken at once
            try:
                event = self.event_queue.get(block=False)
            except queue.Empty:
                self._wait()
            else:
                self._tell_unexpected(event)
                self.state_machine.do_action(event)

    def _tell_unexpected(self, event: str) -> None:
        """Log a PDU that is sound, and ends the association since it is not its turn (PS3.8 9.2.3: actions AA-1 and AA-8)."""
        action = TRANSITION_TABLE.get((event, self.state_machine.current_state))
        if event in _RECEIVED and action in ("AA-1", "AA-8"):
            self.tell_end("association aborted", f"an unexpected {_RECEIVED[event]}")

    def _wait(self) -> None:
        connection = self.socket.socket
        if connection is not None and connection.fileno() < 0:
            connection = None
        limit = self.artim_timer.remaining if self.artim_timer.runs else None
        self.wakeup.wait(None if self._must_wait else connection, limit)

    @property
    def _must_wait(self) -> bool:
        return self.state_machine.current_state == "Sta6" and self.assoc.dimse.msg_queue.qsize() >= MAX_UNANSWERED

    def _is_transport_event(self) -> bool:
        if self._request is not None:
            if self.state_machine.current_state != "Sta2":  # awaiting A-ASSOCIATE-RQ; nothing else is read before
                return False
            request, self._request = self._request, None
            self._take(request)
            return True
        return not self._must_wait and super()._is_transport_event()

    def _read_pdu_data(self) -> None:
        """Read one PDU and tell the state machine: by its type, Evt17 (connection closed) or Evt19 (invalid PDU).

        What has come already of a message whose first data were taken is taken with it.
        """
        try:
            self._read_pdu()
            while self._more_of_a_message:
                self._idle_timer.restart()
                self._read_pdu()
        except TimeoutError:
            self.socket.give_up()
            self._lose(f"a PDU was not complete after {self.assoc.network_timeout:g} s (listener.network_timeout_s)")
        except OSError as error:
            self._lose(f"the connection broke: {error.strerror or type(error).__name__}")

    @property
    def _more_of_a_message(self) -> bool:
        return (
            self.assoc.dimse.message is not None
            and not self._kill_thread
            and self.event_queue.empty()
            and self.to_provider_queue.empty()
            and self.socket.ready
        )

    def _read_pdu(self) -> None:
        header = self.socket.recv(PDU_HEADER.size)
        if len(header) < PDU_HEADER.size:
            self.event_queue.put("Evt17")
            return
        kind, _, length = PDU_HEADER.unpack(header)
        if not 1 <= kind <= 7:
            self._refuse(f"a PDU of the unknown type {kind:02X}")
        elif length > LONGEST_PDU:
            self.socket.send(abort_pdu(INVALID_PARAMETER))
            self._lose(f"a PDU of {length} bytes was announced; at most {LONGEST_PDU} are taken")
        else:
            head, body = bytes(header), self.socket.recv(length)
            if len(body) < length:
                self._lose("the connection ended within a PDU")
            elif kind == P_DATA_TF and self.state_machine.current_state == "Sta6" and self.event_queue.empty():
                self._take_data(body)
            else:
                self._take(head + body)

    def _take_data(self, body: memoryview) -> None:
        """What the state machine does with a P-DATA-TF in state 6 (DT-2, PS3.8 9.2), without copies."""
        try:
            found = list(fragments(body))
        except ValueError:
            self._refuse(f"a PDU of type {P_DATA_TF:02X} that is malformed")
        else:
            self.assoc.dimse.receive_fragments(found)

    def _take(self, pdu: bytes) -> None:
        try:
            if pdu[0] == A_ASSOCIATE_RQ:
                check_request(pdu[PDU_HEADER.size :])
            decoded, event = self._decode_pdu(bytearray(pdu))
        except Exception:  # pynetdicom's decoders raise almost anything
            self._refuse(f"a PDU of type {pdu[0]:02X} that is malformed")
        else:
            if self.state_machine.current_state == "Sta2" and (version := int.from_bytes(pdu[6:8], "big")) != 1:
                # pynetdicom answers (PS3.8 9.3.4: 1, 2, 2).
                self.tell_end("association rejected", f"protocol version {version}; expected 1")
            self._recv_pdu.put(decoded)
            self.event_queue.put(event)

    def _refuse(self, reason: str) -> None:
        if self.state_machine.current_state != "Sta13":  # there the association has ended, and the reason was told
            self.tell_end("association aborted", reason)
        self.event_queue.put("Evt19")

    def _lose(self, reason: str) -> None:
        if self.state_machine.current_state != "Sta13":
            self.tell_end("connection closed", reason)
        self.event_queue.put("Evt17")

    def tell_end(self, what: str, reason: str) -> None:
        """Why the association ends, once: what follows is of its end."""
        if not self._told:
            self._told = True
            self.assoc.log.warning(what, reason=reason)
