"""Assembles DIMSE messages from the fragments that P-DATA-TF PDUs bring (PS3.7 section 6, PS3.8 annex E).

pynetdicom 3.0 collects a command set of any length, and waits for ever for a data set: here both end the
association.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext

from daemon.dicom.encoding import StoreRequest, store_request
from daemon.dimse.instance_writer import InstanceWriter
from daemon.dimse.waiting import WakingQueue

STORE_REQUESTS = (C_STORE, StoreRequest)
LAST_COMMAND_FRAGMENT = b"\3"  # message control header of a command set's last fragment (PS3.8 E.2)
MAX_COMMAND_SIZE = 1 << 16  # bytes of a command set; the longest of the standard has some hundreds
MIN_BYTES_PER_S = 1024  # of a message, beyond the network timeout; a slower one ends its association


class StoreMessage(C_STORE_RQ):
    """A C-STORE request whose command set was read without pydicom."""

    def __init__(self, context_id: int, message_id: int, sop_class_uid: str, sop_instance_uid: str) -> None:
        self.context_id = context_id
        self.message_id = message_id
        self.command_set = {"AffectedSOPClassUID": sop_class_uid, "AffectedSOPInstanceUID": sop_instance_uid}

    def message_to_primitive(self) -> StoreRequest:
        """Return the request, as pynetdicom's messages do."""
        uids = self.command_set
        return StoreRequest(
            self.message_id, uids["AffectedSOPClassUID"], uids["AffectedSOPInstanceUID"], self._data_set_file
        )


def _store_message(
    fragments: Sequence[tuple[int, bytes | memoryview]], contexts: dict[int, PresentationContext]
) -> StoreMessage | None:
    """Return the message that these fragments begin, None unless they are a whole C-STORE command set."""
    if len(fragments) != 1:
        return None
    ((context_id, fragment),) = fragments
    if context_id not in contexts or fragment[:1] != LAST_COMMAND_FRAGMENT:
        return None
    request = store_request(bytes(fragment[1:]))
    return StoreMessage(context_id, *request) if request else None


class MessageAssembly(DIMSEServiceProvider):
    """Assembles one message after the other for an `IncomingAssociation`, which serves the requests."""

    message: Any

    def __init__(self, association: Any) -> None:
        super().__init__(association)
        self.msg_queue = WakingQueue(association.wake)

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of a P-DATA primitive, which pynetdicom's state machine hands over."""
        self.receive_fragments(primitive.presentation_data_value_list)

    def receive_fragments(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """Take the fragments of one P-DATA-TF with their presentation contexts; none is kept."""
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
            self.assoc.dul.log_end("association aborted", f"a DIMSE message cannot be read: {reason}")
            self.dul.event_queue.put("Evt19")  # unrecognized or invalid PDU: abort (PS3.8 9.2)
            return
        if isinstance(request, C_CANCEL):
            return
        # If no other request is being served, the thread that received a C-STORE request serves it at once.
        if not (isinstance(request, STORE_REQUESTS) and self.assoc.serve_at_once(request, message.context_id)):
            self.msg_queue.put((message.context_id, request))

    def _add(self, fragments: Sequence[tuple[int, bytes | memoryview]]) -> bool:
        """Add fragments to the message; return whether it is complete."""
        file = self.message._data_set_file
        if self._is_data_set and not any(fragment[0] & 3 for _, fragment in fragments):
            for _, fragment in fragments:
                file.write(fragment[1:])
            return False
        if isinstance(self.message, StoreMessage):
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
        self.message = _store_message(fragments, self.assoc._accepted_cx) or DIMSEMessage()
        self.message._data_set_file = InstanceWriter(self.assoc.writer_context, self.message)
        self._began, self._cpu_began = time.monotonic(), time.thread_time()
        self._received = self._command = 0
        self._context: int | None = None
        self._command_complete = False

    @property
    def _is_data_set(self) -> bool:
        """Whether only the rest of a request's data set is missing."""
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
                if self._command > MAX_COMMAND_SIZE:
                    raise ValueError(f"its command set is longer than {MAX_COMMAND_SIZE} bytes")
            elif not self._command_complete:
                raise ValueError("a data set came without its command set")
        if time.monotonic() - self._began > self.assoc.network_timeout + self._received / MIN_BYTES_PER_S:
            raise ValueError(f"it comes more slowly than {MIN_BYTES_PER_S} bytes a second")
