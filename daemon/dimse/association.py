"""The acceptor's side of an association: pynetdicom's, with what a listener on a hospital network needs on top.

pynetdicom 3.0 leaves these open, each is closed by one small override below (and more of them in `daemon.dimse.upper_layer`):
- the temporary file of a C-STORE lies outside the spool and leaks with a cut transfer: here `InstanceWriter`;
- a request whose UIDs are wrong ends the association, or is never answered: here it is one refused instance;
- a command set without end is collected without end, and one data set may take for ever: here both end the association.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from daemon.dicom.encoding import StoreRequest, store_request, store_response
from daemon.dimse.instance_writer import InstanceWriter
from daemon.dimse.upper_layer import UpperLayer, UpperLayerSocket, WakingQueue, set_timeout

STORE_REQUESTS = (C_STORE, StoreRequest)
LAST_OF_COMMAND = b"\3"  # message control header of a command set's last fragment (PS3.8 E.2)
USER_REJECTION = 1  # of a presentation context (PS3.8 table 9-18)
MAX_COMMAND = 1 << 16  # bytes of a command set; the longest of the standard has some hundreds
SLOWEST = 1024  # bytes per second at which a message is still worth its place, beyond the network timeout
END_LIMIT_S = 2.0  # for a polite end; then the connection is closed
REJECTED_LIMIT_S = 2.0  # for a rejected peer to take the answer

log = structlog.get_logger()


class _Negotiation(ACSE):
    def send_accept(self) -> None:
        # pynetdicom knows these contexts as unsupported; the truth is that this peer may not use them.
        for context in self.assoc._rejected_cx:
            if str(context.abstract_syntax) in self.assoc.denied:
                context.result = USER_REJECTION
        super().send_accept()


class _PlainStore(C_STORE_RQ):
    """A C-STORE request whose command set was read without pydicom."""

    def __init__(self, context_id: int, message_id: int, sop_class_uid: str, sop_instance_uid: str) -> None:
        self.context_id = context_id
        self.message_id = message_id
        self.command_set = {"AffectedSOPClassUID": sop_class_uid, "AffectedSOPInstanceUID": sop_instance_uid}

    def message_to_primitive(self) -> StoreRequest:
        uids = self.command_set
        return StoreRequest(
            self.message_id, uids["AffectedSOPClassUID"], uids["AffectedSOPInstanceUID"], self._data_set_file
        )


def _plain_store(
    fragments: Sequence[tuple[int, bytes | memoryview]], contexts: dict[int, PresentationContext]
) -> _PlainStore | None:
    """Of the first fragments of a message; None where they are not the whole command set of a plain C-STORE request."""
    if len(fragments) != 1:
        return None
    ((context_id, fragment),) = fragments
    if context_id not in contexts or fragment[:1] != LAST_OF_COMMAND:
        return None
    request = store_request(bytes(fragment[1:]))
    return _PlainStore(context_id, *request) if request else None


class _StoreProvider(DIMSEServiceProvider):
    """Collects the fragments of one message after the other (PS3.7 section 6, PS3.8 annex E)."""

    message: Any

    def __init__(self, association: IncomingAssociation) -> None:
        super().__init__(association)
        self.msg_queue = WakingQueue(association.wake)

    def receive_primitive(self, primitive: Any) -> None:
        self.receive_fragments(primitive.presentation_data_value_list)

    def receive_fragments(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Fragments with their presentation contexts, as they came in one P-DATA-TF; they are not kept."""
        try:
            if self.message is None:
                self._begin(fragments)
            self._check(fragments)
            if not self._add(fragments):
                return
            message, self.message = self.message, None
            message._data_set_file.cpu_seconds = time.thread_time() - self._cpu_began
            request = message.message_to_primitive()
        except Exception as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            self.assoc.dul.tell_end("association aborted", f"a DIMSE message cannot be read: {reason}")
            self.dul.event_queue.put("Evt19")  # unrecognized or invalid PDU: abort (PS3.8 9.2)
            return
        if isinstance(request, C_CANCEL):
            return
        # Where nothing else is under way, a C-STORE is served by the thread that received it, which has nothing better to do.
        if not (isinstance(request, STORE_REQUESTS) and self.assoc.serve_at_once(request, message.context_id)):
            self.msg_queue.put((message.context_id, request))

    def _add(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> bool:
        """Whether the message is complete with them."""
        file = self.message._data_set_file
        if self._is_data_set and not any(fragment[0] & 3 for _, fragment in fragments):
            for _, fragment in fragments:
                file.write(fragment[1:])
            return False
        if isinstance(self.message, _PlainStore):
            for _, fragment in fragments:
                if not fragment[0] & 1:  # the command set has been read
                    file.write(fragment[1:])
                    if fragment[0] & 2:
                        return True
            return False
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[context, bytes(fragment)] for context, fragment in fragments]
        return bool(self.message.decode_msg(primitive, self.assoc))

    def _begin(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        self.message = _plain_store(fragments, self.assoc._accepted_cx) or DIMSEMessage()
        self.message._data_set_file = InstanceWriter(self.assoc, self.message)
        self._began, self._cpu_began = time.monotonic(), time.thread_time()
        self._received = self._command = 0
        self._context: int | None = None
        self._command_complete = False

    @property
    def _is_data_set(self) -> bool:
        """Whether nothing but the data set of a request is missing, some of which came already."""
        return self._command_complete and self._received > self._command

    def _check(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        for context_id, fragment in fragments:
            if self._context not in (None, context_id):
                raise ValueError("its fragments name several presentation contexts")
            self._context = context_id
            self._received += len(fragment)
            if fragment[0] & 1:  # of the command set
                if self._command_complete:
                    raise ValueError("a second command set came where a data set was expected")
                self._command_complete = bool(fragment[0] & 2)
                self._command += len(fragment)
                if self._command > MAX_COMMAND:
                    raise ValueError(f"its command set is longer than {MAX_COMMAND} bytes")
            elif not self._command_complete:
                raise ValueError("a data set came without its command set")
        if time.monotonic() - self._began > self.assoc.network_timeout + self._received / SLOWEST:
            raise ValueError(f"it comes more slowly than {SLOWEST} bytes a second")


@dataclass(frozen=True)
class Acceptor:
    """What all associations of one reception share.

    `rules` decides about a requested association, in its thread; `store` answers a C-STORE request with status and reason;
    `ended` is told when an association has ended, after its files are gone. Data sets of more than `max_instance` bytes
    are refused.
    """

    ae: AE
    address: tuple[Any, ...]
    contexts: list[PresentationContext]
    folder: Path
    max_instance: int
    rules: Callable[[IncomingAssociation], None]
    store: Callable[[IncomingAssociation, Any, PresentationContext], tuple[int, str]]
    ended: Callable[[IncomingAssociation], None]


class IncomingAssociation(Association):
    """One association that a peer requested by the A-ASSOCIATE-RQ PDU `request`, with an `id` for the log."""

    def __init__(
        self, acceptor: Acceptor, id: str, connection: socket.socket, address: tuple[Any, ...], request: bytes
    ) -> None:
        super().__init__(acceptor.ae, MODE_ACCEPTOR)
        self.id = id
        self.name = f"AcceptorThread@{self.id}"  # the prefix is what pynetdicom finds its acceptors by
        self.peer_address = str(address[0])
        self.log = log.bind(association=self.id, address=self.peer_address)
        self.acceptor_of = acceptor
        self.folder = acceptor.folder
        self.files: set[InstanceWriter] = set()
        self.last_active = time.monotonic()
        self.stored = self.refused = 0
        self._work = threading.Event()
        self._serving = threading.Lock()  # one request after the other, whichever thread serves it
        self.dul: UpperLayer = UpperLayer(self, request)
        self.dimse = _StoreProvider(self)
        self.acse = _Negotiation(self)
        self.denied: frozenset[str] = frozenset()
        self.acse_timeout = acceptor.ae.acse_timeout  # again: they set the timers of the upper layer
        self.network_timeout = acceptor.ae.network_timeout
        set_timeout(connection, self.network_timeout)
        self._connection = connection
        self.set_socket(UpperLayerSocket(self, client_socket=connection))
        self.acceptor.maximum_length = acceptor.ae.maximum_pdu_size
        self.acceptor.ae_title = acceptor.ae.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(acceptor.address)
        self.acceptor.implementation_class_uid = acceptor.ae.implementation_class_uid
        self.acceptor.implementation_version_name = acceptor.ae.implementation_version_name
        # Shared: negotiation only reads them, and copying costs 20 ms.
        self.acceptor.supported_contexts = acceptor.contexts
        self.requestor.address_info = AddressInformation.from_tuple(address)
        self.bind(evt.EVT_REQUESTED, lambda event: acceptor.rules(self))
        # A connection closed before its request is understood would else hold its thread for the whole ACSE timeout.
        self.bind(evt.EVT_CONN_CLOSE, lambda event: self.dul.to_user_queue.put(None))

    def _bind_defaults(self) -> None:
        # Without the handlers that describe every PDU for the log (they cost 11 % of the throughput).
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def wake(self) -> None:
        """There is something for the association's thread to do."""
        self._work.set()

    def deny(self, abstract_syntaxes: frozenset[str]) -> None:
        """Before the negotiation: reject the presentation contexts of these abstract syntaxes as not permitted."""
        self.denied = abstract_syntaxes
        self.acceptor.supported_contexts = [
            context
            for context in self.acceptor.supported_contexts
            if str(context.abstract_syntax) not in abstract_syntaxes
        ]

    def reject(self, result: int, source: int, diagnostic: int) -> None:
        """Answer with A-ASSOCIATE-RJ (PS3.8 9.3.4) and end."""
        self.dul.artim_timer.timeout = REJECTED_LIMIT_S
        self.acse.send_reject(result, source, diagnostic)
        self.kill()

    def disconnect(self) -> None:
        """End the connection at once; threads that read from it wake up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End the upper layer: it gets a moment to send what it has to, then the connection is closed."""
        self._kill = True
        self.is_established = False
        self.wake()
        if not self.dul.is_alive():
            return
        if self.dul.state_machine.current_state == "Sta1":
            self.dul.kill_dul()
        self.dul.join(END_LIMIT_S)
        if self.dul.is_alive():
            self.disconnect()
            self.dul.kill_dul()
            self.dul.join(END_LIMIT_S)

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception:
            self.log.exception("association failed")
        finally:
            self.dul.kill_dul()
            self.disconnect()
            if self.dul.is_alive():  # where the system had no thread for it, it never was
                self.dul.join(END_LIMIT_S)  # or it might begin another file
            self._connection.close()
            self.dul.wakeup.close()
            for file in list(self.files):
                file.discard()
            self.acceptor_of.ended(self)

    def _run_reactor(self) -> None:
        """pynetdicom's loop of an established association, which sleeps while there is nothing to do."""
        while not self._kill:
            self._work.clear()
            with self._serving:
                context_id, message = self.dimse.get_msg(block=False)
                if message is not None:
                    self._serve(message, context_id)
            if message is not None:
                self.dul.wakeup.set()
            elif self.is_established and self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released = True
                self.kill()
            elif self.acse.is_aborted():
                self.is_aborted = True
                self.kill()
            elif self.dul.ended.is_set():
                self.kill()
            elif self.dul.idle_timer_expired():
                reason = f"nothing came for {self.network_timeout:g} s (listener.network_timeout_s)"
                self.dul.tell_end("association aborted", reason)
                self.dul.socket.give_up()
                self.abort()
                self.kill()
            elif self.dimse.msg_queue.empty():
                self._work.wait(max(self.dul._idle_timer.remaining, 0) + 0.01)

    def serve_at_once(self, request: C_STORE | StoreRequest, context_id: int) -> bool:
        """Serve a request in the calling thread, unless another one is being served or waits, or it is too early."""
        if not self.is_established or not self._serving.acquire(blocking=False):
            return False
        try:
            if not self.dimse.msg_queue.empty():
                return False
            self._serve(request, context_id)
            return True
        finally:
            self._serving.release()

    def _serve(self, request: Any, context_id: int) -> None:
        try:
            self._serve_request(request, context_id)
        finally:
            self.dul._idle_timer.restart()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        # pynetdicom chooses the service by the request's SOP Class, and aborts or stays silent where that is unknown,
        # missing or malformed. Here a C-STORE request is always answered.
        context = self._accepted_cx.get(context_id)
        is_request = (
            isinstance(msg, STORE_REQUESTS) and msg.MessageID is not None and msg.MessageIDBeingRespondedTo is None
        )
        if not is_request or context is None:
            super()._serve_request(msg, context_id)
            if self._sent_abort:
                what = f"a {msg.msg_type} message in presentation context {context_id}"
                reason = "which is not open" if context is None else "for which there is no service"
                self.dul.tell_end("association aborted", f"{what}, {reason}")
            return
        status, reason = self.acceptor_of.store(self, msg, context)
        if self.is_established:
            answer = P_DATA()
            command = store_response(msg.MessageID, msg.AffectedSOPClassUID, msg.AffectedSOPInstanceUID, status, reason)
            answer.presentation_data_value_list = [[context_id, LAST_OF_COMMAND + command]]
            self.dul.send_pdu(answer)
