"""The DICOM listener: C-ECHO and C-STORE of every standard storage class in every transfer syntax, stored as received.

An instance is answered with success only after `accept` made it durable. What is wrong with a request costs that one
request a status (PS3.4 table B.2-1, PS3.7 annex C), and the association goes on.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from config import settings
from config.errors import ConfigurationError
from daemon import events
from daemon.archive import take_report
from daemon.association import Acceptor, IncomingAssociation
from daemon.connections import Address, Connections, Limits, allow_descriptors
from daemon.data_set import DOES_NOT_MATCH_SOP_CLASS, check_data_set
from daemon.errors import RefusedInstance
from daemon.incoming import Incoming
from daemon.incoming_file import PART_SUFFIX
from daemon.peers import denied_classes, entries_for
from daemon.presentation_contexts import choose_transfer_syntax, supported_contexts
from daemon.rejection import Rejection, RejectionKind
from daemon.reports.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.spool import NO_ROOM
from daemon.stages import Stage, Took, tell
from daemon.tls import Credentials, Side
from daemon.upper_layer import MAX_UNANSWERED

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.17
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6
OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1

# A-ASSOCIATE-RJ result, source, reason (PS3.8 table 9-21).
CALLING_AE_NOT_RECOGNIZED = (1, 1, 3)
CALLED_AE_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

SPARE = 32  # associations that are about to be rejected, beyond those that may be open
DRAIN_LIMIT_S = 30.0
DESCRIPTORS_EACH = 2 + MAX_UNANSWERED  # of an association: its connection, what wakes its thread, files being received
IDLE_S = 1.0  # a stopping listener aborts an association that has sent nothing for so long
ABORT_LIMIT_S = 2.0

log = structlog.get_logger()


def sweep(incoming: Path, older_than_s: float) -> int:
    """Remove half-received files that nothing wrote to for so many seconds; returns how many.

    The listener removes its own; these are left by a process that was killed.
    """
    removed = 0
    for path in incoming.glob(f"*{PART_SUFFIX}"):
        try:
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            pass  # its association just ended
    return removed


class Listener:
    """Receives instances into the folder `incoming` and hands each complete one to `accept`.

    `accept` returns when the instance is durable, and may raise RefusedInstance (its status is the answer) or OSError;
    it copies, links or moves the file away, whose name is removed afterwards. `admit` gives a reason why nothing
    more can be taken at present (disk nearly full), or None. `commitment` takes a storage commitment result: the calling AE
    title and the event information (PS3.4 J.3.3); it gives the status to answer. `on_rejection` is told of each caller not let
    in, `on_end` of the id of each association that has ended. All are called from the listener's threads, several at a time.

    Raises:
        ConfigurationError: a TLS file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: settings.Listener,
        incoming: Path,
        accept: Callable[[Incoming], None],
        admit: Callable[[], str | None] = lambda: None,
        commitment: Callable[[str, Dataset], int] | None = None,
        on_rejection: Callable[[Rejection], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._incoming = incoming
        self._accept = accept
        self._admit = admit
        self._commitment = commitment
        self._on_rejection = on_rejection
        self._on_end = on_end
        self._tls = Credentials(settings.tls, "listener.tls", Side.ACCEPT) if settings.tls else None
        self._lock = threading.Lock()
        self._rejected: Counter[RejectionKind] = Counter()
        self._open: set[IncomingAssociation] = set()
        self._admitted: set[IncomingAssociation] = set()
        self._stopping = False
        self._connections: Connections | None = None

    def start(self) -> None:
        """Open the port and serve in the background.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        chosen = self._settings
        self._incoming.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=chosen.ae_title)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = chosen.max_pdu
        ae.network_timeout = chosen.network_timeout_s
        # `_rules` decides on these, so that every rejection has its reason and is logged.
        ae.maximum_associations = chosen.max_associations + SPARE
        ae.require_called_aet = False
        allow_descriptors(chosen.max_connections + DESCRIPTORS_EACH * (chosen.max_associations + SPARE))
        limits = Limits(chosen.max_connections, chosen.max_connections_per_address, chosen.request_timeout_s)
        try:
            self._connections = Connections(
                (chosen.host, chosen.port),
                self._tls.context if self._tls else None,
                limits,
                self._serve,
                self._handshake_failed,
            )
        except OSError as error:
            raise ConfigurationError(
                f"listener.host = {chosen.host!r}, listener.port = {chosen.port}: {error.strerror}; "
                "name an address and a free port of this machine"
            ) from error
        self._acceptor = Acceptor(
            ae=ae,
            address=self._connections.address,
            contexts=supported_contexts(),
            folder=self._incoming,
            max_instance=chosen.max_instance,
            rules=self._rules,
            store=self._store,
            ended=self._ended,
        )
        self._connections.start()
        if not chosen.peers:
            log.warning("listener.peers is empty: every AE title from every address may send")

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        assert self._connections is not None, "the listener was not started"
        return int(self._connections.address[1])

    @property
    def waiting(self) -> int:
        """Connections that have not asked for an association yet."""
        return self._connections.waiting if self._connections is not None else 0

    @property
    def open_associations(self) -> int:
        """Associations that were accepted and have not ended."""
        return len(self._admitted)

    @property
    def rejected(self) -> dict[str, int]:
        """Callers not let in since the start, by kind."""
        with self._lock:
            return {kind.value: self._rejected[kind] for kind in RejectionKind}

    def replace_peers(self, peers: tuple[settings.Peer, ...]) -> None:
        """Who may call from now on; associations that are open go on."""
        self._settings = self._settings.model_copy(update={"peers": peers})

    def reread_certificates(self) -> None:
        """Take over TLS files that have changed, without waiting for the next connection."""
        if self._tls is not None:
            self._tls.context()

    def stop_accepting(self) -> None:
        """Close the port; associations go on. Harmless when repeated."""
        if self._connections is not None and not self._stopping:
            self._stopping = True
            self._connections.stop()

    def stop(self, limit_s: float = DRAIN_LIMIT_S) -> None:
        """Close the port and let associations finish within `limit_s` seconds; idle and late ones are aborted.

        An instance that is being received is received and answered, unless the limit comes first.
        """
        self.stop_accepting()
        end = time.monotonic() + limit_s
        while associations := self._associations():
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

    def _associations(self) -> list[IncomingAssociation]:
        with self._lock:
            return list(self._open)

    def _serve(self, connection: socket.socket, address: Address, request: bytes) -> None:
        """Start the association that a connection asked for."""
        chosen, host = self._settings, str(address[0])
        with self._lock:
            here = sum(association.peer_address == host for association in self._open)
            full = len(self._open) >= chosen.max_associations + SPARE
            full = full or here >= chosen.max_associations_per_address + SPARE
        if full:
            connection.close()
            log.warning("connection closed: too many associations are being rejected or ended", address=host)
            return
        association = IncomingAssociation(self._acceptor, connection, address, request)
        with self._lock:
            self._open.add(association)
        try:
            association.start()
        except RuntimeError:  # the system has no more threads
            association.dul.wakeup.close()
            self._ended(association)
            raise

    def _rules(self, association: IncomingAssociation) -> None:
        """Admit a requested association, or reject it with the reason (PS3.8 table 9-21)."""
        request = association.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):
            return
        association.log = association.log.bind(calling_ae=request.calling_ae_title, called_ae=request.called_ae_title)
        refusal = self._refusal(association, request)
        if refusal is not None:
            codes, kind, reason = refusal
            association.log.warning("association rejected", reason=reason)
            self._count(association, kind, reason)
            association.reject(*codes)
            return
        association.log.info("association accepted")
        events.tell(events.AssociationAccepted(request.calling_ae_title, association.peer_address))
        self._deny(association, request)
        if (commitment := self._commitment) is not None:
            caller = request.calling_ae_title
            association.bind(
                evt.EVT_N_EVENT_REPORT,
                lambda event: (take_report(event, lambda information: commitment(caller, information)), None),
            )
        for context in request.presentation_context_definition_list:
            # pynetdicom takes the first of its own list that was offered; offering it one leaves the choice to us.
            if chosen := choose_transfer_syntax([str(uid) for uid in context.transfer_syntax]):
                context.transfer_syntax = [UID(chosen)]

    def _refusal(
        self, association: IncomingAssociation, request: A_ASSOCIATE
    ) -> tuple[tuple[int, int, int], RejectionKind, str] | None:
        chosen = self._settings
        if chosen.called_ae_required and request.called_ae_title != chosen.ae_title:
            reason = f"the called AE title is not {chosen.ae_title}"
            return CALLED_AE_NOT_RECOGNIZED, RejectionKind.CALLED_AE_TITLE, reason
        if chosen.peers and not entries_for(chosen.peers, request.calling_ae_title, association.peer_address):
            reason = "listener.peers does not name this calling AE title at this address"
            return CALLING_AE_NOT_RECOGNIZED, RejectionKind.UNKNOWN_PEER, reason
        if self._stopping:
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, "the service is stopping"
        if full := self._admit():
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, full
        with self._lock:
            if len(self._admitted) >= chosen.max_associations:
                reason = f"listener.max_associations = {chosen.max_associations} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            here = sum(other.peer_address == association.peer_address for other in self._admitted)
            if here >= (most := chosen.max_associations_per_address):
                reason = f"listener.max_associations_per_address = {most} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            self._admitted.add(association)
        return None

    def _deny(self, association: IncomingAssociation, request: A_ASSOCIATE) -> None:
        """Reject what the peer may not do by its presentation contexts, before anything is sent to us."""
        if not (peers := self._settings.peers):
            return
        entries = entries_for(peers, request.calling_ae_title, association.peer_address)
        supported = association.acceptor.supported_contexts
        denied = denied_classes(entries, (str(context.abstract_syntax) for context in supported))
        association.deny(denied)
        asked = {str(context.abstract_syntax) for context in request.presentation_context_definition_list}
        if asked & denied:
            reason = "listener.peers does not let this peer do all that it asks for"
            association.log.warning("presentation contexts rejected", reason=reason, contexts=len(asked & denied))
            self._count(association, RejectionKind.NOT_PERMITTED, reason)

    def _count(self, association: IncomingAssociation, kind: RejectionKind, reason: str) -> None:
        request = association.requestor.primitive
        self._tell(Rejection(kind, association.peer_address, request.calling_ae_title, request.called_ae_title, reason))

    def _tell(self, rejection: Rejection) -> None:
        with self._lock:
            self._rejected[rejection.kind] += 1
        events.tell(rejection)
        self._on_rejection(rejection)

    def _handshake_failed(self, address: str, reason: str) -> None:
        self._tell(Rejection(RejectionKind.TLS, address, "", "", reason))

    def _store(self, association: IncomingAssociation, request: Any, context: PresentationContext) -> tuple[int, str]:
        """Receive one instance; its C-STORE response status and, for a refusal, the reason."""
        file = request._dataset_file
        cpu = time.thread_time()
        sop_class_uid, status = str(request.AffectedSOPClassUID), SUCCESS
        bound = association.log.bind(sop_class_uid=sop_class_uid, sop_instance_uid=str(request.AffectedSOPInstanceUID))
        try:
            if reason := self._admit():
                raise RefusedInstance(OUT_OF_RESOURCES, reason)
            self._accept(_incoming(association, request, context))
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
            events.tell(events.InstanceAnswered(sop_class_uid, status, caller, association.peer_address))
            cpu_seconds = file.cpu_seconds + time.thread_time() - cpu
            tell(Took(Stage.RECEIVE, time.monotonic() - file.began, cpu_seconds))
        association.refused += 1
        return status, reason

    def _ended(self, association: IncomingAssociation) -> None:
        with self._lock:
            was_admitted = association in self._admitted
            self._admitted.discard(association)
            self._open.discard(association)
        self._on_end(association.id)
        if was_admitted:
            how = "released" if association.is_released else "aborted" if association.is_aborted else "connection lost"
            association.log.info("association ended", how=how, stored=association.stored, refused=association.refused)


def _incoming(association: IncomingAssociation, request: Any, context: PresentationContext) -> Incoming:
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
    facts = check_data_set(data_set, transfer_syntax_uid)
    for name, in_data_set, in_request in (
        ("SOP Class UID (0008,0016)", facts.sop_class_uid, request.AffectedSOPClassUID),
        ("SOP Instance UID (0008,0018)", facts.sop_instance_uid, request.AffectedSOPInstanceUID),
    ):
        if in_data_set != in_request:
            raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, f"the data set's {name} differs from the C-STORE request's")
    return Incoming(
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
