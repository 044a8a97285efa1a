"""The acceptor's side of an association: pynetdicom's, hardened for a hospital network.

pynetdicom 3.0 aborts an association, or never answers, if the UIDs of a request are wrong: here that one
instance is refused. What else is overridden stands in `daemon.dimse.upper_layer` and
`daemon.dimse.message_assembly`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from daemon.dicom.encoding import StoreRequest, store_response
from daemon.dimse.instance_writer import InstanceWriter, WriterContext
from daemon.dimse.message_assembly import LAST_COMMAND_FRAGMENT, STORE_REQUESTS, MessageAssembly
from daemon.dimse.upper_layer import UpperLayer
from daemon.dimse.upper_layer_socket import UpperLayerSocket, set_timeout

USER_REJECTION = 1  # of a presentation context (PS3.8 table 9-18)
MAX_END_S = 2.0  # for an orderly end; then the connection is closed
MAX_REJECTION_S = 2.0  # for a rejected peer to take the answer

log = structlog.get_logger()


class _Negotiation(ACSE):
    def send_accept(self) -> None:
        # To pynetdicom these contexts are unsupported; in truth this peer is not permitted to use them.
        for context in self.assoc._rejected_cx:
            if str(context.abstract_syntax) in self.assoc.denied:
                context.result = USER_REJECTION
        super().send_accept()


@dataclass(frozen=True)
class Acceptor:
    """What all associations of one `StoreScp` share.

    `rules` accepts or rejects a requested association, in its thread. `store` serves a C-STORE request and
    returns status and reason. `ended` is called when an association has ended, after its files are gone. Data
    sets of more than `max_instance` bytes are refused.
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
    """An association that a peer requested with the PDU `request` (A-ASSOCIATE-RQ); `id` is for the log."""

    def __init__(
        self, acceptor: Acceptor, *, id: str, connection: socket.socket, address: tuple[Any, ...], request: bytes
    ) -> None:
        super().__init__(acceptor.ae, MODE_ACCEPTOR)
        self.id = id
        self.name = f"AcceptorThread@{self.id}"  # pynetdicom finds its acceptors by the prefix
        self.peer_address = str(address[0])
        self.log = log.bind(association=self.id, address=self.peer_address)
        self._shared = acceptor
        self.files: set[InstanceWriter] = set()
        self.writer_context = WriterContext(
            folder=acceptor.folder,
            max_instance=acceptor.max_instance,
            transfer_syntax=self._transfer_syntax,
            opened=self._file_opened,
            closed=self._file_closed,
        )
        self.last_active = time.monotonic()
        self.stored = self.refused = 0
        self._work = threading.Event()
        self._serving = threading.Lock()  # one request at a time, in whichever thread
        self.dul: UpperLayer = UpperLayer(self, request)
        self.dimse = MessageAssembly(self)
        self.acse = _Negotiation(self)
        self.denied: frozenset[str] = frozenset()
        self.acse_timeout = acceptor.ae.acse_timeout  # set again, as both set timers of the new upper layer
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
        # Or a connection closed before its request is read would hold its thread for the whole ACSE timeout.
        self.bind(evt.EVT_CONN_CLOSE, lambda event: self.dul.to_user_queue.put(None))

    def _bind_defaults(self) -> None:
        # Without pynetdicom's handlers that log every PDU (they cost 11 % of the throughput).
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def _transfer_syntax(self, context_id: int | None) -> str | None:
        context = self._accepted_cx.get(context_id)
        return str(context.transfer_syntax[0]) if context is not None else None

    def _file_opened(self, file: InstanceWriter) -> None:
        self.files.add(file)
        self.last_active = time.monotonic()

    def _file_closed(self, file: InstanceWriter) -> None:
        self.files.discard(file)
        self.last_active = time.monotonic()

    def wake(self) -> None:
        """Wake the association's thread: there is something to do."""
        self._work.set()

    def deny(self, abstract_syntaxes: frozenset[str]) -> None:
        """Reject the presentation contexts of these abstract syntaxes; call it before the negotiation."""
        self.denied = abstract_syntaxes
        self.acceptor.supported_contexts = [
            context
            for context in self.acceptor.supported_contexts
            if str(context.abstract_syntax) not in abstract_syntaxes
        ]

    def reject(self, result: int, source: int, diagnostic: int) -> None:
        """Answer with A-ASSOCIATE-RJ (PS3.8 9.3.4) and end."""
        self.dul.artim_timer.timeout = MAX_REJECTION_S
        self.acse.send_reject(result, source, diagnostic)
        self.kill()

    def disconnect(self) -> None:
        """Close the connection at once, which wakes the threads that read from it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End the upper layer: it gets a moment to send what is left, then the connection is closed."""
        self._kill = True
        self.is_established = False
        self.wake()
        if not self.dul.is_alive():
            return
        if self.dul.state_machine.current_state == "Sta1":
            self.dul.kill_dul()
        self.dul.join(MAX_END_S)
        if self.dul.is_alive():
            self.disconnect()
            self.dul.kill_dul()
            self.dul.join(MAX_END_S)

    def run_reactor(self) -> None:
        """Negotiate and serve until the end, whatever happens; then close everything and report the end."""
        try:
            super().run_reactor()
        except Exception:
            self.log.exception("association failed")
        finally:
            self.dul.kill_dul()
            self.disconnect()
            if self.dul.is_alive():  # not if the system had no thread for it
                self.dul.join(MAX_END_S)  # or it might begin another file
            self._connection.close()
            self.dul.wakeup.close()
            for file in list(self.files):
                file.discard()
            self._shared.ended(self)

    def _run_reactor(self) -> None:
        """Serve an established association until it ends: pynetdicom's loop, but asleep while idle."""
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
                reason = f"nothing was received for {self.network_timeout:g} s (listener.network_timeout_s)"
                self.dul.log_end("association aborted", reason)
                self.dul.socket.give_up()
                self.abort()
                self.kill()
            elif self.dimse.msg_queue.empty():
                self._work.wait(max(self.dul._idle_timer.remaining, 0) + 0.01)

    def serve_at_once(self, request: C_STORE | StoreRequest, context_id: int) -> bool:
        """Serve a request in the calling thread and return True, if no other is being served or waits.

        Return False if one is, or the association is not established yet.
        """
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
        # pynetdicom chooses the service by the request's SOP Class, and aborts or stays silent if that is
        # unknown, missing or malformed. Here a C-STORE request is always answered.
        context = self._accepted_cx.get(context_id)
        is_request = (
            isinstance(msg, STORE_REQUESTS) and msg.MessageID is not None and msg.MessageIDBeingRespondedTo is None
        )
        if not is_request or context is None:
            super()._serve_request(msg, context_id)
            if self._sent_abort:
                what = f"a {msg.msg_type} message in presentation context {context_id}"
                reason = "which is not open" if context is None else "for which there is no service"
                self.dul.log_end("association aborted", f"{what}, {reason}")
            return
        status, reason = self._shared.store(self, msg, context)
        if self.is_established:
            answer = P_DATA()
            command = store_response(msg.MessageID, msg.AffectedSOPClassUID, msg.AffectedSOPInstanceUID, status, reason)
            answer.presentation_data_value_list = [[context_id, LAST_COMMAND_FRAGMENT + command]]
            self.dul.send_pdu(answer)
