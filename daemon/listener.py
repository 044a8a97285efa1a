"""The DICOM listener: C-ECHO and C-STORE of every standard storage class in every transfer syntax, stored as received.

An instance is answered with success only after `accept` made it durable. What is wrong with a request costs that one
request a status (PS3.4 table B.2-1, PS3.7 annex C), and the association goes on.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import UID, UID_dictionary
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from config import settings
from config.errors import ConfigurationError
from daemon.archive import take_report
from daemon.association import PART_SUFFIX, Acceptor, IncomingAssociation
from daemon.connections import Address, Connections, Limits, allow_descriptors
from daemon.data_set import (
    DOES_NOT_MATCH_SOP_CLASS,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    check_data_set,
)
from daemon.errors import RefusedInstance
from daemon.incoming import Incoming
from daemon.reports.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
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

_UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)  # best first
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = structlog.get_logger()


def storage_classes() -> list[str]:
    """Every storage SOP Class of the standard, retired ones and those of non-patient objects included."""
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and " Storage" in name and "Media Storage Directory" not in name
    }
    return sorted(named | {str(context.abstract_syntax) for context in AllStoragePresentationContexts})


@functools.cache
def supported_contexts() -> list[PresentationContext]:
    """Verification, storage commitment results and every storage SOP Class, each with every transfer syntax.

    Made once (it takes 0.1 s), never changed.
    """
    syntaxes = sorted(TRANSFER_SYNTAXES)
    commitment = build_context(StorageCommitmentPushModel, syntaxes)
    commitment.scu_role = commitment.scp_role = True  # its SCP calls us, in that role (PS3.4 J.3.3)
    return [commitment, *(build_context(uid, syntaxes) for uid in (Verification, *storage_classes()))]


def choose_transfer_syntax(offered: list[str]) -> str | None:
    """Which of the transfer syntaxes offered in one presentation context is accepted; None where none is known.

    A sender names first what it holds: a compressed syntax at the head is taken as sent. Among uncompressed ones Explicit
    VR little endian goes first whatever the order, as it keeps the value representations of private elements.
    """
    known = [uid for uid in offered if uid in TRANSFER_SYNTAXES]
    if known and known[0] in _UNCOMPRESSED:
        return next(uid for uid in _UNCOMPRESSED if uid in known)
    return known[0] if known else None


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
    title and the event information (PS3.4 J.3.3); it gives the status to answer. All are called from the associations' threads,
    several at a time.

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
    ) -> None:
        self._settings = settings
        self._incoming = incoming
        self._accept = accept
        self._admit = admit
        self._commitment = commitment
        self._tls = _tls_context(settings.tls) if settings.tls else None
        self._lock = threading.Lock()
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
            self._connections = Connections((chosen.host, chosen.port), self._tls, limits, self._serve)
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
            codes, reason = refusal
            association.log.warning("association rejected", reason=reason)
            association.reject(*codes)
            return
        association.log.info("association accepted")
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

    def _refusal(self, association: IncomingAssociation, request: Any) -> tuple[tuple[int, int, int], str] | None:
        chosen = self._settings
        if chosen.called_ae_required and request.called_ae_title != chosen.ae_title:
            return CALLED_AE_NOT_RECOGNIZED, f"the called AE title is not {chosen.ae_title}"
        if not self._may_call(request.calling_ae_title, association.peer_address):
            return CALLING_AE_NOT_RECOGNIZED, "listener.peers does not name this calling AE title at this address"
        if self._stopping:
            return TEMPORARY_CONGESTION, "the service is stopping"
        if reason := self._admit():
            return TEMPORARY_CONGESTION, reason
        with self._lock:
            if len(self._admitted) >= chosen.max_associations:
                return LOCAL_LIMIT_EXCEEDED, f"listener.max_associations = {chosen.max_associations} are open"
            here = sum(other.peer_address == association.peer_address for other in self._admitted)
            if here >= (most := chosen.max_associations_per_address):
                return LOCAL_LIMIT_EXCEEDED, f"listener.max_associations_per_address = {most} are open"
            self._admitted.add(association)
        return None

    def _may_call(self, ae_title: str, address: str) -> bool:
        if not self._settings.peers:
            return True
        source = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped:
            source = source.ipv4_mapped
        return any(
            peer.ae_title == ae_title
            and (not peer.networks or any(source in ipaddress.ip_network(network) for network in peer.networks))
            for peer in self._settings.peers
        )

    def _store(self, association: IncomingAssociation, request: Any, context: PresentationContext) -> tuple[int, str]:
        """Receive one instance; its C-STORE response status and, for a refusal, the reason."""
        file = request._dataset_file
        bound = association.log.bind(
            sop_class_uid=str(request.AffectedSOPClassUID), sop_instance_uid=str(request.AffectedSOPInstanceUID)
        )
        try:
            if reason := self._admit():
                raise RefusedInstance(OUT_OF_RESOURCES, reason)
            self._accept(_incoming(association, request, context))
        except RefusedInstance as refused:
            status, reason = refused.status, refused.reason
            bound.warning("instance refused", status=f"{status:04X}", reason=reason)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
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
        association.refused += 1
        return status, reason

    def _ended(self, association: IncomingAssociation) -> None:
        with self._lock:
            was_admitted = association in self._admitted
            self._admitted.discard(association)
            self._open.discard(association)
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
    )


def _tls_context(tls: settings.TLS) -> ssl.SSLContext:
    """TLS 1.2 or newer (BCP 195, PS3.15 B.9), each side showing a certificate that `ca` signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(tls.ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"listener.tls.ca = {str(tls.ca)!r}: {error}; name a PEM file of CA certificates"
        ) from error
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")  # never ask on the terminal
    except OSError as error:
        raise ConfigurationError(
            f"listener.tls.certificate = {str(tls.certificate)!r}, listener.tls.key = {str(tls.key)!r}: {error}; "
            "name the PEM files of a certificate and its private key without a password"
        ) from error
    return context
