"""The acceptor's side of an association: pynetdicom's, with what a listener on a hospital network needs on top.

pynetdicom 3.0 leaves these open, each is closed by one small override below:
- the TLS handshake runs in the accept loop, where one silent client stops the listener: here it runs in the connection's thread;
- a PDU that announces 2 GiB is waited for: here the association is aborted;
- the temporary file of a C-STORE lies outside the spool and leaks with a cut transfer: here `IncomingFile`;
- a request whose UIDs are wrong ends the association, or is never answered: here it is one refused instance;
- delayed acknowledgements and 4,096-byte reads cost 44 ms per object and most of the throughput.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket, RequestHandler, ThreadedAssociationServer

from daemon.data_set import CANNOT_UNDERSTAND, INVALID_OBJECT_INSTANCE
from daemon.errors import RefusedInstance
from daemon.reports.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.uids import valid_uid

HANDSHAKE_LIMIT_S = 30
LONGEST_PDU = (1 << 20) + (1 << 16)  # bytes; [listener] max_pdu goes to 1 MiB, and some senders exceed it by a header
WRITE_BUFFER = 1 << 20  # bytes
PART_SUFFIX = ".part"

# A-ABORT from the service provider, reason "invalid PDU parameter value" (PS3.8 9.3.8).
_ABORT_PDU = bytes.fromhex("07 00 00000004 00 00 02 06")

log = structlog.get_logger()


class IncomingFile:
    """The Part 10 file that the data set of one C-STORE request goes into while it is received.

    pynetdicom writes each fragment to its DIMSE message's file where that has one. A failure to write is kept for the
    answer, and the rest of the data set is received and dropped: the association goes on.
    """

    def __init__(self, association: IncomingAssociation, message: Any) -> None:
        self._association = association
        self._message = message
        self._file: BinaryIO | None = None
        self._data_set_at = 0
        self.failure: RefusedInstance | OSError | None = None
        self.path = association.folder / f"{secrets.token_hex(16)}{PART_SUFFIX}"

    @property
    def file(self) -> IncomingFile:
        """What pynetdicom flushes after every fragment; here the buffer decides."""
        return self

    def flush(self) -> None:
        pass

    def write(self, fragment: bytes) -> None:
        if self.failure is not None:
            return
        try:
            if self._file is None:
                self._begin()
            assert self._file is not None
            self._file.write(fragment)
        except (OSError, RefusedInstance) as error:
            self.failure = error

    def _begin(self) -> None:
        message, association = self._message, self._association
        if not isinstance(message, C_STORE_RQ):
            raise ValueError("a data set came without a C-STORE request")
        association.files.add(self)
        association.last_active = time.monotonic()
        context = association._accepted_cx.get(message.context_id)
        if context is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came in a presentation context not accepted")
        sop_class_uid, sop_instance_uid = _command_uids(message)
        meta = encode_file_meta(
            create_file_meta(
                sop_class_uid=UID(sop_class_uid),
                sop_instance_uid=UID(sop_instance_uid),
                transfer_syntax=context.transfer_syntax[0],
                implementation_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version=IMPLEMENTATION_VERSION_NAME,
            )
        )
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "w+b", buffering=WRITE_BUFFER)
        self._data_set_at = self._file.write(bytes(128) + b"DICM" + meta)

    def data_set(self) -> BinaryIO:
        """The complete file, open and standing at the first byte of the data set.

        Raises:
            RefusedInstance: the request had no data set, or its UIDs are no UIDs.
            OSError: it could not be written.
        """
        if self.failure is not None:
            raise self.failure
        if self._file is None:
            raise RefusedInstance(CANNOT_UNDERSTAND, "the C-STORE request came without a data set")
        self._file.flush()
        self._file.seek(self._data_set_at)
        return self._file

    def discard(self) -> None:
        """Close the file and remove its name; what was accepted has a name of its own by now."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self.path.unlink(missing_ok=True)
        self._association.files.discard(self)
        self._association.last_active = time.monotonic()


def _command_uids(message: Any) -> list[str]:
    """SOP Class and Instance UID of the command set.

    What is no UID is taken out of the command set, or pynetdicom would end the association over it.

    Raises:
        RefusedInstance: 0117, one is missing or is no UID.
    """
    command = message.command_set
    texts = {keyword: str(command.get(keyword) or "") for keyword in ("AffectedSOPClassUID", "AffectedSOPInstanceUID")}
    wrong = [keyword for keyword, text in texts.items() if not valid_uid(text)]
    for keyword in wrong:
        command.pop(keyword, None)
    if wrong:
        raise RefusedInstance(
            INVALID_OBJECT_INSTANCE,
            f"{' and '.join(wrong)} of the C-STORE request: missing, or not a UID by PS3.5 section 9",
        )
    return list(texts.values())


class _Socket(AssociationSocket):
    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly `nr_bytes`, or fewer where the connection ends, straight into one buffer of that size."""
        if nr_bytes > LONGEST_PDU:
            self.socket.sendall(_ABORT_PDU)
            raise ConnectionAbortedError(f"a PDU of {nr_bytes} bytes was announced; at most {LONGEST_PDU} are taken")
        received = bytearray(nr_bytes)
        view = memoryview(received)
        filled = 0
        while filled < nr_bytes:
            count = self.socket.recv_into(view[filled:])
            if count == 0:
                return received[:filled]
            filled += count
        self._acknowledge_now()
        return received

    def send(self, bytestream: bytes) -> None:
        super().send(bytestream)
        self._acknowledge_now()

    @property
    def ready(self) -> bool:
        """Whether bytes can be read; by poll, as select takes no descriptor above 1,023."""
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


class _UpperLayer(DULServiceProvider):
    def __init__(self, association: IncomingAssociation) -> None:
        super().__init__(association)
        self.daemon = True  # a peer that says nothing must not keep the process from ending

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception:  # PDUs that pynetdicom's state machine does not expect
            self.assoc.log.warning("protocol error, connection closed")
            self.kill_dul()
            self.assoc.disconnect()
            self.to_user_queue.put(None)  # wakes the association, if it still waits for a request


class _StoreProvider(DIMSEServiceProvider):
    message: Any

    def receive_primitive(self, primitive: Any) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
            self.message._data_set_file = IncomingFile(self.assoc, self.message)
        try:
            super().receive_primitive(primitive)
        except Exception:
            self.assoc.log.warning("a DIMSE message cannot be read, association aborted")
            self.dul.event_queue.put("Evt19")  # unrecognized or invalid PDU: abort (PS3.8 9.2)


class IncomingAssociation(Association):
    """One association that a peer requested, with an id for the log."""

    def __init__(self, server: Server, connection: socket.socket, address: Any) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self.id = secrets.token_hex(4)
        self.name = f"AcceptorThread@{self.id}"  # the prefix is what pynetdicom finds its acceptors by
        self.peer_address = str(address[0])
        self.log = log.bind(association=self.id, address=self.peer_address)
        self.folder = server.folder
        self.files: set[IncomingFile] = set()
        self.last_active = time.monotonic()
        self.stored = self.refused = 0
        self._server = server
        self.dul = _UpperLayer(self)
        self.dimse = _StoreProvider(self)
        self.acse_timeout = server.ae.acse_timeout  # again: they set the timers of the upper layer
        self.network_timeout = server.ae.network_timeout
        self.set_socket(_Socket(self, client_socket=connection))
        self.acceptor.maximum_length = server.ae.maximum_pdu_size
        self.acceptor.ae_title = server.ae_title
        self.acceptor.address_info = AddressInformation.from_tuple(server.server_address)
        self.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        self.acceptor.implementation_version_name = server.ae.implementation_version_name
        self.acceptor.supported_contexts = (
            server.contexts
        )  # shared: negotiation only reads them, and copying costs 20 ms
        self.requestor.address_info = AddressInformation.from_tuple(address)
        self.bind(evt.EVT_REQUESTED, lambda event: server.rules(self))
        # A connection closed before any request would else hold its thread and its place for the whole ACSE timeout.
        self.bind(evt.EVT_CONN_CLOSE, lambda event: self.dul.to_user_queue.put(None))

    def _bind_defaults(self) -> None:
        # Without the handlers that describe every PDU for the log (they cost 11 % of the throughput).
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def reject(self, result: int, source: int, diagnostic: int) -> None:
        """Answer with A-ASSOCIATE-RJ (PS3.8 9.3.4) and end."""
        self.acse.send_reject(result, source, diagnostic)
        self.kill()

    def disconnect(self) -> None:
        """End the connection at once; threads that read from it wake up."""
        connection = self.dul.socket.socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def run_reactor(self) -> None:
        self._server.begun(self)
        try:
            super().run_reactor()
        except Exception:
            self.log.exception("association failed")
            self.disconnect()
        finally:
            self.dul.kill_dul()
            for file in list(self.files):
                file.discard()
            self._server.ended(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        # pynetdicom chooses the service by the request's SOP Class, and aborts or stays silent where that is unknown,
        # missing or malformed. Here a C-STORE request is always answered.
        context = self._accepted_cx.get(context_id)
        is_request = isinstance(msg, C_STORE) and msg.MessageID is not None and msg.MessageIDBeingRespondedTo is None
        if not is_request or context is None:
            super()._serve_request(msg, context_id)
            return
        response = C_STORE()
        response.MessageIDBeingRespondedTo = msg.MessageID
        response.AffectedSOPClassUID = msg.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = msg.AffectedSOPInstanceUID
        response.Status, reason = self._server.store(self, msg, context)
        if reason:
            response.ErrorComment = reason.encode("ascii", "replace").decode()[:64]  # LO: 64 characters
        if self.is_established:
            self.dimse.send_msg(response, context_id)


class _Connection(RequestHandler):
    """Runs in a thread of its own per connection: the TLS handshake, then the association's own threads."""

    server: Server
    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(HANDSHAKE_LIMIT_S)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        with contextlib.suppress(OSError):
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.settimeout(self.server.ae.network_timeout)
        IncomingAssociation(self.server, self.request, self.client_address).start()


class Server(ThreadedAssociationServer):
    """Accepts connections and starts an `IncomingAssociation` for each.

    `rules` decides about a requested association, in its thread; `store` answers a C-STORE request with status and reason;
    `after` is told when an association has ended, after its files are gone. At most `limit` connections are open at a time.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        contexts: list[PresentationContext],
        folder: Path,
        tls: ssl.SSLContext | None,
        limit: int,
        rules: Callable[[IncomingAssociation], None],
        store: Callable[[IncomingAssociation, Any, PresentationContext], tuple[int, str]],
        after: Callable[[IncomingAssociation], None],
    ) -> None:
        super().__init__(ae, address, ae.ae_title, contexts, request_handler=_Connection)
        ae._servers.append(self)  # where its shutdown() takes it out again
        self.folder = folder
        self.tls = tls
        self.rules = rules
        self.store = store
        self._after = after
        self._places = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._open: set[IncomingAssociation] = set()

    @property
    def associations(self) -> list[IncomingAssociation]:
        with self._lock:
            return list(self._open)

    def begun(self, association: IncomingAssociation) -> None:
        with self._lock:
            self._open.add(association)

    def ended(self, association: IncomingAssociation) -> None:
        self._after(association)
        with self._lock:
            self._open.discard(association)
        self._places.release()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # the connection stays pending, and would be offered again at once
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self._places.acquire(blocking=False):
            return True
        log.warning("connection closed: too many are open", address=client_address[0])
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called for what goes wrong before there is an association: mostly a failed TLS handshake."""
        log.warning("connection closed before an association", address=client_address[0], reason=str(sys.exception()))
        self._places.release()

    def service_actions(self) -> None:
        """Without pynetdicom's garbage collection every 59 polls: it stops all threads, and Python collects by itself."""
