"""The upper layer (PS3.8) of an accepted association: pynetdicom's state machine, hardened.

pynetdicom 3.0 lacks these, each is one small override below or in `waiting` and `upper_layer_socket`:
- its threads poll a thousand times a second: here they sleep until there is work, so an idle association
  costs nothing;
- lengths in an association request that reach beyond it are cut to what is there: here the request is
  refused;
- an association that ends for its protocol version or an unexpected PDU leaves nothing in the log: here it is
  logged;
- it waits for a PDU of 2 GiB, or one that comes a byte a minute: here the association ends;
- requests sent without waiting for an answer pile up: here nothing more is read until some are answered;
- received data are copied several times: here they go from the buffer into their file.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE

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
from daemon.dimse.upper_layer_socket import UpperLayerSocket
from daemon.dimse.waiting import MonotonicTimer, Wakeup, WakingQueue

MAX_PDU_SIZE = (1 << 20) + (1 << 16)  # bytes; [listener] max_pdu goes to 1 MiB, and some senders exceed it by a header
MAX_UNANSWERED = 8  # requests; no asynchronous operations are negotiated, so an honest sender has one
# Received PDUs by pynetdicom's names of events (PS3.8 table 9-10).
_RECEIVED = {
    "Evt3": "A-ASSOCIATE-AC", "Evt4": "A-ASSOCIATE-RJ", "Evt6": "A-ASSOCIATE-RQ",
    "Evt10": "P-DATA-TF", "Evt12": "A-RELEASE-RQ", "Evt13": "A-RELEASE-RP",
}  # fmt: skip


class UpperLayer(DULServiceProvider):
    """Reads and writes the PDUs of an `IncomingAssociation` in a thread of its own.

    `request` is the association's A-ASSOCIATE-RQ PDU, which was read before.
    """

    socket: UpperLayerSocket

    def __init__(self, association: Any, request: bytes) -> None:
        super().__init__(association)
        self.daemon = True  # a silent peer must not keep the process from ending
        self.wakeup = Wakeup()
        self.ended = threading.Event()
        self._request: bytes | None = request
        self._end_logged = False
        self.event_queue = WakingQueue(self.wakeup.set)
        self.to_provider_queue = WakingQueue(self.wakeup.set)
        self.to_user_queue = WakingQueue(association.wake)
        self._idle_timer, self.artim_timer = MonotonicTimer(60), MonotonicTimer(30)  # until the association sets them

    def kill_dul(self) -> None:
        """Tell the thread to end."""
        super().kill_dul()
        self.wakeup.set()

    def run_reactor(self) -> None:
        """Run the state machine until the association ends; a protocol error aborts it."""
        try:
            self._run()
        except Exception:  # pynetdicom's state machine does not expect the PDU
            self.log_end("association aborted", "protocol error: a PDU that cannot be understood here")
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
            # Either the state machine sends a primitive, or a PDU is received.
            if not self._process_recv_primitive() and self._is_transport_event():
                self._idle_timer.restart()
                if self.event_queue.empty():
                    continue  # data, which were taken at once
            try:
                event = self.event_queue.get(block=False)
            except queue.Empty:
                self._wait()
            else:
                self._log_unexpected(event)
                self.state_machine.do_action(event)

    def _log_unexpected(self, event: str) -> None:
        """Log a valid PDU that ends the association as it is out of state (PS3.8 9.2.3: AA-1 and AA-8)."""
        action = TRANSITION_TABLE.get((event, self.state_machine.current_state))
        if event in _RECEIVED and action in ("AA-1", "AA-8"):
            self.log_end("association aborted", f"an unexpected {_RECEIVED[event]}")

    def _wait(self) -> None:
        connection = self.socket.socket
        if connection is not None and connection.fileno() < 0:
            connection = None
        limit = self.artim_timer.remaining if self.artim_timer.is_running else None
        self.wakeup.wait(None if self._must_wait else connection, limit)

    @property
    def _must_wait(self) -> bool:
        return self.state_machine.current_state == "Sta6" and self.assoc.dimse.msg_queue.qsize() >= MAX_UNANSWERED

    def _is_transport_event(self) -> bool:
        if self._request is not None:
            if self.state_machine.current_state != "Sta2":  # Sta2 awaits A-ASSOCIATE-RQ; nothing else is read before
                return False
            request, self._request = self._request, None
            self._take(request)
            return True
        return not self._must_wait and super()._is_transport_event()

    def _read_pdu_data(self) -> None:
        """Read one PDU and queue its event, or Evt17 (connection closed) or Evt19 (invalid PDU).

        PDUs of the same message that were received already are read with it.
        """
        try:
            self._read_pdu()
            while self._has_more_of_message:
                self._idle_timer.restart()
                self._read_pdu()
        except TimeoutError:
            self.socket.give_up()
            self._lose(f"a PDU was not complete after {self.assoc.network_timeout:g} s (listener.network_timeout_s)")
        except OSError as error:
            self._lose(f"the connection broke: {error.strerror or type(error).__name__}")

    @property
    def _has_more_of_message(self) -> bool:
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
        elif length > MAX_PDU_SIZE:
            self.socket.send(abort_pdu(INVALID_PARAMETER))
            self._lose(f"a PDU of {length} bytes was announced; at most {MAX_PDU_SIZE} are taken")
        else:
            head, body = bytes(header), self.socket.recv(length)
            if len(body) < length:
                self._lose("the connection ended within a PDU")
            elif kind == P_DATA_TF and self.state_machine.current_state == "Sta6" and self.event_queue.empty():
                self._take_data(body)
            else:
                self._take(head + body)

    def _take_data(self, body: memoryview) -> None:
        """Do what the state machine does with a P-DATA-TF in state 6 (DT-2, PS3.8 9.2), without copies."""
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
                self.log_end("association rejected", f"protocol version {version}; expected 1")
            self._recv_pdu.put(decoded)
            self.event_queue.put(event)

    def _refuse(self, reason: str) -> None:
        if self.state_machine.current_state != "Sta13":  # Sta13: the association has ended, and the reason was logged
            self.log_end("association aborted", reason)
        self.event_queue.put("Evt19")

    def _lose(self, reason: str) -> None:
        if self.state_machine.current_state != "Sta13":
            self.log_end("connection closed", reason)
        self.event_queue.put("Evt17")

    def log_end(self, what: str, reason: str) -> None:
        """Log why the association ends, once: what follows is a consequence of its end."""
        if not self._end_logged:
            self._end_logged = True
            self.assoc.log.warning(what, reason=reason)
