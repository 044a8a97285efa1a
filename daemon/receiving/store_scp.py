"""Serves the associations of one process: C-ECHO, C-STORE and storage commitment results.

An instance is answered with success only after `accept` made it durable. A fault in a request is answered
with a failure status (PS3.4 table B.2-1, PS3.7 annex C), and the association goes on.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from config.settings import Listener as ListenerSettings
from daemon.dicom.dataset_scan import scan_data_set
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.dicom.status import (
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
)
from daemon.dimse.association import Acceptor, IncomingAssociation
from daemon.dimse.n_event_report import take_report
from daemon.dimse.pending_connections import Address
from daemon.dimse.presentation_contexts import choose_transfer_syntax, supported_contexts
from daemon.dimse.upper_layer import MAX_UNANSWERED
from daemon.errors import RefusedInstance
from daemon.events import bus
from daemon.events.timings import Stage, StageTiming, publish
from daemon.receiving.admission import (
    SPARE_ASSOCIATIONS,
    TEMPORARY_CONGESTION,
    AssociationRequest,
    Decision,
    Rejected,
)
from daemon.storage.filesystem import DISK_FULL
from daemon.storage.received_instance import ReceivedInstance, received_instance

DESCRIPTORS_EACH = 2 + MAX_UNANSWERED  # of an association: connection, eventfd, files being received
IDLE_S = 1.0  # without data, after which a stopping listener aborts an association
MAX_ABORT_S = 2.0  # for an abort; then the connection is closed

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class ScpCallbacks:
    """What a `StoreScp` calls, from several threads at a time.

    `decide` accepts or rejects a requested association. `full` returns why no instance can be taken now, or
    None. `accept` returns when an instance is durable; it may raise RefusedInstance (its status is the
    answer) or OSError, and copies, links or moves the file, whose name is removed afterwards. `commitment`
    takes a storage commitment result (calling AE title, event information of PS3.4 J.3.3) and returns the
    status to answer. `ended` is told the id of each association that has ended.
    """

    decide: Callable[[str, AssociationRequest], Decision]
    full: Callable[[], str | None]
    accept: Callable[[ReceivedInstance], None]
    commitment: Callable[[str, Dataset], int] | None
    ended: Callable[[str], None]


class StoreScp:
    """Serves the associations that it is given; received files go into `folder`, `address` was called."""

    def __init__(self, settings: ListenerSettings, *, folder: Path, address: Address, callbacks: ScpCallbacks) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=settings.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = settings.max_pdu
        ae.network_timeout = settings.network_timeout_s
        # `decide` checks these instead, so that every rejection has a reason and is logged.
        ae.maximum_associations = settings.max_associations + SPARE_ASSOCIATIONS
        ae.require_called_aet = False
        self._callbacks = callbacks
        self._acceptor = Acceptor(
            ae=ae,
            address=address,
            contexts=supported_contexts(),
            folder=folder,
            max_instance=settings.max_instance,
            rules=self._negotiate,
            store=self._store,
            ended=self._ended,
        )
        self._lock = threading.Lock()
        self._open: set[IncomingAssociation] = set()
        self._admitted: set[IncomingAssociation] = set()

    @property
    def open(self) -> list[IncomingAssociation]:
        """The associations that have not ended, admitted or not."""
        with self._lock:
            return list(self._open)

    def serve(self, association_id: str, connection: socket.socket, address: Address, request: bytes) -> None:
        """Start the association that a connection requested; it owns the connection unless this raises.

        Raises:
            RuntimeError: the system has no more threads.
            OSError: it has no more file descriptors.
        """
        try:
            association = IncomingAssociation(
                self._acceptor, id=association_id, connection=connection, address=address, request=request
            )
        except Exception:
            self._callbacks.ended(association_id)
            raise
        with self._lock:
            self._open.add(association)
        try:
            association.start()
        except RuntimeError:
            association.dul.wakeup.close()
            self._ended(association)
            raise

    def stop(self, limit_s: float) -> None:
        """Let associations finish within `limit_s` seconds; abort idle and late ones.

        An instance that is being received is still answered, unless that takes longer than the limit.
        """
        end = time.monotonic() + limit_s
        while associations := self.open:
            now = time.monotonic()
            for association in associations:
                if association not in self._admitted or now > end + MAX_ABORT_S:
                    association.disconnect()
                elif now > end or (not association.files and now - association.last_active > IDLE_S):
                    association.abort(block=False)
            if now > end + 2 * MAX_ABORT_S:
                log.error("associations did not end in time", count=len(associations))
                return
            time.sleep(0.02)

    def _negotiate(self, association: IncomingAssociation) -> None:
        """Accept a requested association, or reject it with the reason."""
        request = association.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):
            return
        caller = request.calling_ae_title
        association.log = association.log.bind(calling_ae=caller, called_ae=request.called_ae_title)
        contexts = request.presentation_context_definition_list
        requested = AssociationRequest(
            caller, request.called_ae_title, frozenset(str(context.abstract_syntax) for context in contexts)
        )
        try:
            decision = self._callbacks.decide(association.id, requested)
        except Exception:  # pynetdicom would go on to accept it
            association.log.exception("association admission failed")
            decision = Rejected(TEMPORARY_CONGESTION, "processing failure")
        if isinstance(decision, Rejected):
            association.log.warning("association rejected", reason=decision.reason)
            association.reject(*decision.codes)
            return
        with self._lock:
            self._admitted.add(association)
        association.log.info("association accepted")
        if decision.denied:
            association.deny(decision.denied)
        if decision.requested_denied:
            association.log.warning(
                "presentation contexts rejected", reason=decision.reason, contexts=len(decision.requested_denied)
            )
        if (commitment := self._callbacks.commitment) is not None:
            association.bind(
                evt.EVT_N_EVENT_REPORT,
                lambda event: (take_report(event, lambda information: commitment(caller, information)), None),
            )
        for context in contexts:
            # pynetdicom accepts the first of its own list that was offered: leave it the one of our choice.
            if preferred := choose_transfer_syntax([str(uid) for uid in context.transfer_syntax]):
                context.transfer_syntax = [UID(preferred)]

    def _store(self, association: IncomingAssociation, request: Any, context: PresentationContext) -> tuple[int, str]:
        """Accept one instance; return its C-STORE response status and, for a failure, the reason."""
        file = request._dataset_file
        cpu = time.thread_time()
        sop_class_uid, status = str(request.AffectedSOPClassUID), SUCCESS
        bound = association.log.bind(sop_class_uid=sop_class_uid, sop_instance_uid=str(request.AffectedSOPInstanceUID))
        try:
            if reason := self._callbacks.full():
                raise RefusedInstance(OUT_OF_RESOURCES, reason)
            self._callbacks.accept(_checked_instance(association, request, context))
        except RefusedInstance as refused:
            status, reason = refused.status, refused.reason
            bound.warning("instance refused", status=f"{status:04X}", reason=reason)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                status, reason = OUT_OF_RESOURCES, f"the instance cannot be written: {error.strerror}"
                bound.error("instance refused", status=f"{status:04X}", reason=reason)
            else:
                status, reason = PROCESSING_FAILURE, "processing failure, see the receiver's log"
                bound.exception("instance failed", status=f"{status:04X}")
        else:
            association.stored += 1
            return SUCCESS, ""
        finally:
            file.discard()
            caller = association.requestor.primitive.calling_ae_title
            bus.publish(bus.InstanceAnswered(sop_class_uid, status, caller, association.peer_address))
            cpu_seconds = file.cpu_seconds + time.thread_time() - cpu
            publish(StageTiming(Stage.RECEIVE, time.monotonic() - file.began, cpu_seconds))
        association.refused += 1
        return status, reason

    def _ended(self, association: IncomingAssociation) -> None:
        with self._lock:
            was_admitted = association in self._admitted
            self._admitted.discard(association)
        if was_admitted:
            how = "released" if association.is_released else "aborted" if association.is_aborted else "connection lost"
            association.log.info("association ended", how=how, stored=association.stored, refused=association.refused)
        self._callbacks.ended(association.id)
        with self._lock:
            self._open.discard(association)  # last, as `stop` waits for it


def _checked_instance(association: IncomingAssociation, request: Any, context: PresentationContext) -> ReceivedInstance:
    """Return the received instance, once command, presentation context and data set agree.

    Raises:
        RefusedInstance: see `scan_data_set`; 0122 and A900 if they do not agree.
        OSError: it could not be written.
    """
    file = request._dataset_file
    transfer_syntax_uid = str(context.transfer_syntax[0])
    data_set = file.data_set()
    if request.AffectedSOPClassUID != context.abstract_syntax:
        raise RefusedInstance(
            SOP_CLASS_NOT_SUPPORTED,
            "the request's SOP Class is not the one of its presentation context; send it in its own",
        )
    facts = scan_data_set(data_set, transfer_syntax_uid)
    for name, in_data_set, in_request in (
        ("SOP Class UID (0008,0016)", facts.sop_class_uid, request.AffectedSOPClassUID),
        ("SOP Instance UID (0008,0018)", facts.sop_instance_uid, request.AffectedSOPInstanceUID),
    ):
        if in_data_set != in_request:
            raise RefusedInstance(
                DATA_SET_DOES_NOT_MATCH_SOP_CLASS, f"the data set's {name} differs from the C-STORE request's"
            )
    return received_instance(
        file.path,
        facts,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae=association.requestor.primitive.calling_ae_title,
        called_ae=association.requestor.primitive.called_ae_title,
        peer_address=association.peer_address,
        association_id=association.id,
        digest=file.digest,
    )
