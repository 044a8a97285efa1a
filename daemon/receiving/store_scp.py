"""Serving associations in one process: C-ECHO, C-STORE and storage commitment results of those that are admitted.

An instance is answered with success only after `accept` made it durable. What is wrong with a request costs that one
request a status (PS3.4 table B.2-1, PS3.7 annex C), and the association goes on.
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

from config import settings
from daemon.dicom.dataset_scan import DOES_NOT_MATCH_SOP_CLASS, scan_data_set
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.dimse.association import Acceptor, IncomingAssociation
from daemon.dimse.n_event_report import take_report
from daemon.dimse.pending_connections import Address
from daemon.dimse.presentation_contexts import choose_transfer_syntax, supported_contexts
from daemon.dimse.upper_layer import MAX_UNANSWERED
from daemon.errors import RefusedInstance
from daemon.events import bus
from daemon.events.timings import Stage, StageTiming, publish
from daemon.receiving.admission import SPARE, TEMPORARY_CONGESTION, Asked, Decision, Refused
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import NO_ROOM

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.17
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6
OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1

DESCRIPTORS_EACH = 2 + MAX_UNANSWERED  # of an association: its connection, what wakes its thread, files being received
IDLE_S = 1.0  # a stopping listener aborts an association that has sent nothing for so long
ABORT_LIMIT_S = 2.0

log = structlog.get_logger()


@dataclass(frozen=True)
class ScpCallbacks:
    """What stands behind a reception; all are called from its threads, several at a time.

    `decide` on an association that is asked for; `full` gives a reason why no instance can be taken at present, or None;
    `accept` returns when an instance is durable, and may raise RefusedInstance (its status is the answer) or OSError; it
    copies, links or moves the file away, whose name is removed afterwards. `commitment` takes a storage commitment result: the
    calling AE title and the event information (PS3.4 J.3.3), and gives the status to answer. `ended` is told of each
    association that was served, by its id.
    """

    decide: Callable[[str, Asked], Decision]
    full: Callable[[], str | None]
    accept: Callable[[ReceivedInstance], None]
    commitment: Callable[[str, Dataset], int] | None
    ended: Callable[[str], None]


class StoreScp:
    """Serves the associations it is given. `folder` takes what is being received, `address` is the one that was called."""

    def __init__(self, chosen: settings.Listener, folder: Path, address: Address, behind: ScpCallbacks) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=chosen.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = chosen.max_pdu
        ae.network_timeout = chosen.network_timeout_s
        # What stands behind decides on these, so that every rejection has its reason and is logged.
        ae.maximum_associations = chosen.max_associations + SPARE
        ae.require_called_aet = False
        self._behind = behind
        self._acceptor = Acceptor(
            ae=ae,
            address=address,
            contexts=supported_contexts(),
            folder=folder,
            max_instance=chosen.max_instance,
            rules=self._rules,
            store=self._store,
            ended=self._ended,
        )
        self._lock = threading.Lock()
        self._open: set[IncomingAssociation] = set()
        self._admitted: set[IncomingAssociation] = set()

    @property
    def open(self) -> list[IncomingAssociation]:
        """Those that have not ended, admitted or not."""
        with self._lock:
            return list(self._open)

    def serve(self, association_id: str, connection: socket.socket, address: Address, request: bytes) -> None:
        """Start the association that a connection asked for; it owns the connection, unless this raises.

        Raises:
            RuntimeError: the system has no more threads.
            OSError: it has no more file descriptors.
        """
        try:
            association = IncomingAssociation(self._acceptor, association_id, connection, address, request)
        except Exception:
            self._behind.ended(association_id)
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
        """Let associations finish within `limit_s` seconds; idle and late ones are aborted.

        An instance that is being received is received and answered, unless the limit comes first.
        """
        end = time.monotonic() + limit_s
        while associations := self.open:
            now = time.monotonic()
            for association in associations:
                if association not in self._admitted or now > end + ABORT_LIMIT_S:
                    association.disconnect()
                elif now > end or (not association.files and now - association.last_active > IDLE_S):
                    association.abort(block=False)
            if now > end + 2 * ABORT_LIMIT_S:
                log.error("associations do not end", count=len(associations))
                return
            time.sleep(0.02)

    def _rules(self, association: IncomingAssociation) -> None:
        """Accept a requested association, or reject it with the reason."""
        request = association.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):
            return
        caller = request.calling_ae_title
        association.log = association.log.bind(calling_ae=caller, called_ae=request.called_ae_title)
        contexts = request.presentation_context_definition_list
        asked = Asked(caller, request.called_ae_title, frozenset(str(context.abstract_syntax) for context in contexts))
        try:
            decision = self._behind.decide(association.id, asked)
        except Exception:  # pynetdicom would go on to accept it
            association.log.exception("association cannot be decided on")
            decision = Refused(TEMPORARY_CONGESTION, "processing failure")
        if isinstance(decision, Refused):
            association.log.warning("association rejected", reason=decision.reason)
            association.reject(*decision.codes)
            return
        with self._lock:
            self._admitted.add(association)
        association.log.info("association accepted")
        if decision.denied:
            association.deny(decision.denied)
        if decision.in_vain:
            association.log.warning(
                "presentation contexts rejected", reason=decision.reason, contexts=len(decision.in_vain)
            )
        if (commitment := self._behind.commitment) is not None:
            association.bind(
                evt.EVT_N_EVENT_REPORT,
                lambda event: (take_report(event, lambda information: commitment(caller, information)), None),
            )
        for context in contexts:
            # pynetdicom takes the first of its own list that was offered; offering it one leaves the choice to us.
            if chosen := choose_transfer_syntax([str(uid) for uid in context.transfer_syntax]):
                context.transfer_syntax = [UID(chosen)]

    def _store(self, association: IncomingAssociation, request: Any, context: PresentationContext) -> tuple[int, str]:
        """Receive one instance; its C-STORE response status and, for a refusal, the reason."""
        file = request._dataset_file
        cpu = time.thread_time()
        sop_class_uid, status = str(request.AffectedSOPClassUID), SUCCESS
        bound = association.log.bind(sop_class_uid=sop_class_uid, sop_instance_uid=str(request.AffectedSOPInstanceUID))
        try:
            if reason := self._behind.full():
                raise RefusedInstance(OUT_OF_RESOURCES, reason)
            self._behind.accept(_incoming(association, request, context))
        except RefusedInstance as refused:
            status, reason = refused.status, refused.reason
            bound.warning("instance refused", status=f"{status:04X}", reason=reason)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
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
        self._behind.ended(association.id)
        with self._lock:
            self._open.discard(association)  # the last of it: a stop waits for this


def _incoming(association: IncomingAssociation, request: Any, context: PresentationContext) -> ReceivedInstance:
    """The received instance, checked.

    Raises:
        RefusedInstance: see `check_data_set`; 0122 and A900 where command, context and data set do not agree.
        OSError: it could not be written.
    """
    transfer_syntax_uid = str(context.transfer_syntax[0])
    data_set = request._dataset_file.data_set()
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
            raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, f"the data set's {name} differs from the C-STORE request's")
    return ReceivedInstance(
        path=request._dataset_file.path,
        sop_class_uid=facts.sop_class_uid,
        sop_instance_uid=facts.sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae=association.requestor.primitive.calling_ae_title,
        called_ae=association.requestor.primitive.called_ae_title,
        peer_address=association.peer_address,
        association_id=association.id,
        is_large=facts.is_large,
        study_uid=facts.study_uid,
        series_uid=facts.series_uid,
        digest=request._dataset_file.digest,
    )
