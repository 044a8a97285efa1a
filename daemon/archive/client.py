"""The archive as we call it: associations, C-ECHO, C-STORE (or STOW-RS where `archive.stow_url` is set), retrieval."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from config.errors import ConfigurationError
from config.settings import Archive as ArchiveSettings
from daemon.archive import query_retrieve, stow_rs, wado_rs
from daemon.archive.dicomweb import WebService, read_token, retrieval_service
from daemon.archive.query_retrieve import Wanted
from daemon.archive.store_status import OutgoingInstance, judge_store_status
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.dimse.n_event_report import take_report
from daemon.errors import ArchiveError, CommitmentRefused
from daemon.events import bus
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance
from daemon.system import tls
from daemon.system.tls import Credentials, Side

MAX_CONTEXTS = 128  # per association (PS3.8 9.3.2.2: odd numbers 1 to 255)
MAX_PDU = 131_072
# Associations in a row that break before anything was answered: then it is the archive, not the instance.
BREAKS_IN_A_ROW = 2
# Retrieving may wait for a tape robot, and each wait covers the transfer of a whole image: times archive.timeout_s.
RETRIEVE_PATIENCE = 5
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
CONVERTIBLE = (*UNCOMPRESSED, DeflatedExplicitVRLittleEndian)

# A file that is sent by its path leaves as stored, byte by byte, and is never held in memory as a whole.
_config.STORE_SEND_CHUNKED_DATASET = True


class ContextsRefused(ArchiveError):
    """The archive took the association's calls but none of the presentation contexts."""


class Archive:
    """Calls the archive of `settings` as `calling_ae`; what it retrieves by C-GET is written into `incoming` first.

    Holds no connection between calls, so `settings` may be replaced at any time.

    Raises:
        ConfigurationError: `archive.tls` names files that cannot be used.
    """

    def __init__(self, settings: ArchiveSettings, calling_ae: str, incoming: Path) -> None:
        self.settings = settings
        self.calling_ae = calling_ae
        self.incoming = incoming
        self._credentials: dict[Side, Credentials] = {}
        if settings.tls:
            self._tls(Side.CALL)

    def echo(self) -> None:
        """See whether reports can go out: C-ECHO, or a connection to `archive.stow_url` where that is set.

        Raises:
            ArchiveError: it cannot be reached, refuses the association or answers anything but success.
        """
        if self.settings.stow_url:
            try:
                self._web("archive.stow_url", self.settings.stow_url).connect()
            except ArchiveError as error:
                bus.publish(bus.ArchiveSilent(str(error)))
                raise
            bus.publish(bus.ArchiveAnswered())
            return
        with self.associate([build_context(Verification)]) as association:
            status = association.send_c_echo().get("Status")
        if status != 0x0000:
            raise ArchiveError(f"{self} answered C-ECHO with {_status_text(status)}; expected 0x0000")

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Send `items`; yield the outcome of each, in order, as soon as it is known.

        One association for all while it lasts. An instance that breaks it is to be retried, and those behind it go out
        on a new one; `BREAKS_IN_A_ROW` breaks without an answer, or an association refused: the rest is to be retried.
        """
        items = list(items)
        if not self.settings.stow_url:
            yield from self._c_store(items)
            return
        try:
            service = self._web("archive.stow_url", self.settings.stow_url)
        except ArchiveError as error:
            yield from (_outcome(item, StoreOutcomeKind.RETRY, None, str(error)) for item in items)
        else:
            for outcome in stow_rs.store(service, items):
                silent = outcome.kind is StoreOutcomeKind.RETRY and outcome.status is None
                bus.publish(bus.ArchiveSilent(outcome.reason) if silent else bus.ArchiveAnswered())
                yield outcome

    def find_instances(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """C-FIND or QIDO-RS: those of `wanted` that the archive holds, with study and series filled in.

        Raises:
            ArchiveError: the archive cannot be asked, or does not answer.
        """
        if self.settings.retrieve == "dicomweb":
            return wado_rs.find(self._web(*retrieval_service(self.settings)), wanted)
        with self.associate([build_context(query_retrieve.FIND)]) as association:
            return query_retrieve.find(association, wanted)

    def get_instances(
        self, wanted: Iterable[Wanted], accept: Callable[[ReceivedInstance], None], max_size: int = wado_rs.MAX_INSTANCE
    ) -> list[query_retrieve.RetrieveOutcome]:
        """C-GET or WADO-RS (of at most `max_size` bytes): each instance goes to `accept`, which refuses by RefusedInstance
        or OSError; outcomes in order.

        Raises:
            ArchiveError: the association cannot be had; a break later makes the rest RETRY.
        """
        limit_s = RETRIEVE_PATIENCE * self.settings.timeout_s
        if self.settings.retrieve == "dicomweb":
            taker = wado_rs.RetrievedParts(self.incoming, accept, self.calling_ae, limit_s, max_size)
            return list(wado_rs.get(self._web(*retrieval_service(self.settings)), wanted, taker))
        contexts, roles = query_retrieve.get_contexts()
        receiver = query_retrieve.RetrievedInstances(self.incoming, accept)
        handlers = [(evt.EVT_C_STORE, receiver)]
        with self.associate(contexts, ext_neg=roles, handlers=handlers, response_timeout_s=limit_s) as association:
            return list(query_retrieve.get(association, wanted, receiver))

    def move_instances(self, wanted: Iterable[Wanted], destination_ae: str) -> list[query_retrieve.RetrieveOutcome]:
        """C-MOVE: the archive sends each instance to `destination_ae` (our listener); outcomes in order.

        Raises:
            ArchiveError: the association cannot be had; a break later makes the rest RETRY.
        """
        limit_s = RETRIEVE_PATIENCE * self.settings.timeout_s
        with self.associate([build_context(query_retrieve.MOVE)], response_timeout_s=limit_s) as association:
            return list(query_retrieve.move(association, wanted, destination_ae))

    def request_commitment(
        self,
        transaction_uid: str,
        instances: Sequence[tuple[str, str]],
        take: Callable[[Dataset], int],
        answered: threading.Event,
        linger_s: float,
    ) -> None:
        """N-ACTION: ask to commit `instances` (SOP class, SOP instance); PS3.4 J.3.2.

        The association stays open until `answered` is set or `linger_s` passed: an answer on it goes to `take`, which gives
        its status, and sets `answered` once that status was sent.

        Raises:
            ContextsRefused, CommitmentRefused: the archive knows no storage commitment, or answers with a failure.
            ArchiveError: it cannot be asked, or does not answer.
        """
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = []
        for sop_class_uid, sop_instance_uid in instances:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
            request.ReferencedSOPSequence.append(item)
        taken = threading.Event()

        def on_report(event: evt.Event) -> tuple[int, None]:
            status = take_report(event, take)
            taken.set()
            return status, None

        def on_sent(event: evt.Event) -> None:
            if taken.is_set() and isinstance(event.pdu, P_DATA_TF):  # releasing before would cut our own response off
                answered.set()

        handlers = [(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_PDU_SENT, on_sent)]
        with self.associate([build_context(StorageCommitmentPushModel)], handlers=handlers) as association:
            answer, _ = association.send_n_action(
                request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            status = answer.get("Status")
            if status is None:
                raise ArchiveError(f"{self} did not answer the request for storage commitment, or broke it off")
            if status != 0x0000:
                raise CommitmentRefused(
                    f"{self} answered the request for storage commitment with {_status_text(status)}"
                )
            end = monotonic() + linger_s
            while association.is_established and monotonic() < end and not answered.wait(0.05):
                pass

    def _c_store(self, waiting: list[OutgoingInstance]) -> Iterator[StoreOutcome]:
        breaks = 0
        while waiting:
            batch = _fitting(waiting)
            try:
                with self.associate(_store_contexts(batch)) as association:
                    answered = 0
                    for number, item in enumerate(batch):
                        # The flag alone lags behind an abort, and a request sent then waits for its whole time limit.
                        if not association.is_established or association.acse.is_aborted():
                            break
                        outcome = self._send(association, item, number % 65_535 + 1)
                        waiting.pop(0)
                        answered += outcome.kind is not StoreOutcomeKind.RETRY or outcome.status is not None
                        yield outcome
            except ContextsRefused as error:
                del waiting[: len(batch)]
                yield from (_outcome(item, StoreOutcomeKind.FAILED, None, str(error)) for item in batch)
                continue
            except ArchiveError as error:
                yield from (_outcome(item, StoreOutcomeKind.RETRY, None, str(error)) for item in waiting)
                return
            breaks = 0 if answered else breaks + 1
            if breaks == BREAKS_IN_A_ROW:
                reason = f"{self} broke {breaks} associations in a row; not tried"
                yield from (_outcome(item, StoreOutcomeKind.RETRY, None, reason) for item in waiting)
                return

    def _send(self, association: Association, item: OutgoingInstance, message_id: int) -> StoreOutcome:
        """One C-STORE; after a fault on our side the association is gone, for it may be left half-way."""
        accepted = {(cx.abstract_syntax, cx.transfer_syntax[0]) for cx in association.accepted_contexts}
        began = monotonic()
        try:
            if (item.sop_class_uid, item.transfer_syntax_uid) in accepted:
                answer = association.send_c_store(item.path, msg_id=message_id)
            elif _can_convert(item, accepted):
                answer = association.send_c_store(dcmread(item.path), msg_id=message_id)
            else:
                return _outcome(item, StoreOutcomeKind.FAILED, None, f"{self}: {_refusal(association, item)}")
        except Exception as error:
            if isinstance(error, RuntimeError) and not association.is_established:  # ended since we looked
                return _outcome(item, StoreOutcomeKind.RETRY, None, f"{self} ended the association")
            association.abort()
            passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            kind = StoreOutcomeKind.RETRY if passing else StoreOutcomeKind.FAILED
            return _outcome(item, kind, None, f"the stored file cannot be read: {type(error).__name__}")
        status = answer.get("Status")
        if status is None:
            silent = monotonic() - began >= self.settings.timeout_s
            association.abort()  # pynetdicom may not have noticed yet that it is over
            what = f"gave no answer in {self.settings.timeout_s:g} s" if silent else "broke the association off"
            bus.publish(bus.ArchiveSilent(f"{self} {what}"))
            return _outcome(item, StoreOutcomeKind.RETRY, None, f"{self} {what}")
        kind, reason = judge_store_status(status)
        return _outcome(item, kind, status, reason)

    @contextmanager
    def associate(
        self,
        contexts: Sequence[PresentationContext],
        *,
        ext_neg: Sequence[Any] = (),
        handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
        response_timeout_s: float | None = None,
    ) -> Iterator[Association]:
        """An established association, released at the end of the block or where its consumer stops, aborted where it raises.

        `response_timeout_s` limits the wait for each DIMSE response (`archive.timeout_s` where None).

        Raises:
            ContextsRefused: it accepted none of `contexts`.
            ArchiveError: no archive is set, it cannot be reached, or it refuses the association.
        """
        host, port, limit_s = self.settings.host, self.settings.port, self.settings.timeout_s
        if host is None:
            raise ArchiveError("no archive is set; set archive.host")
        ae = AE(ae_title=self.calling_ae)
        ae.connection_timeout = ae.acse_timeout = limit_s
        ae.dimse_timeout = ae.network_timeout = response_timeout_s or limit_s
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        secure = self._context(Side.CALL)
        opened: list[bool] = []

        def on_open(event: evt.Event) -> None:
            opened.append(True)
            _prepare_socket(event.assoc.dul.socket.socket, limit_s)

        try:
            association = ae.associate(
                host,
                port,
                contexts=list(contexts),
                ae_title=self.settings.ae_title,
                max_pdu=MAX_PDU,
                ext_neg=list(ext_neg),
                tls_args=(secure, host) if secure else None,
                evt_handlers=[(evt.EVT_CONN_OPEN, on_open), *handlers],
            )
        except OSError as error:
            reason = f"{self}: {error.strerror or error}; check archive.host"
            bus.publish(bus.ArchiveSilent(reason))
            raise ArchiveError(reason) from error
        if not association.is_established:
            refused = self._refused(association, bool(opened))
            bus.publish(bus.ArchiveSilent(str(refused)))
            raise refused
        bus.publish(bus.ArchiveAnswered())
        try:
            yield association
        except GeneratorExit:  # whoever asked wants no more; nothing is under way
            if association.is_established:
                association.release()
            raise
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()

    def _refused(self, association: Association, opened: bool) -> ArchiveError:
        answer = association.acceptor.primitive
        if not opened:
            secure = " or failed the TLS handshake" if self.settings.tls else ""
            return ArchiveError(f"{self} cannot be reached{secure}; check archive.host, archive.port and the network")
        if association.is_rejected and answer is not None:
            return ArchiveError(
                f"{self} refused the association ({answer.result_str}: {answer.reason_str}); {self._advice(answer)}"
            )
        if association.rejected_contexts:
            results = {context.status for context in association.rejected_contexts}
            return ContextsRefused(f"{self} accepted no presentation context ({', '.join(sorted(results))})")
        return ArchiveError(f"{self} did not answer the association request, or broke it off")

    def _advice(self, answer: Any) -> str:
        """What to do about an A-ASSOCIATE-RJ, by its source and reason (PS3.8 table 9-21)."""
        reason = answer.result_source, answer.diagnostic
        if reason == (1, 3):
            return (
                f"it does not know us: enter the AE title {self.calling_ae} there, with this machine's address and port"
            )
        if reason == (1, 7):
            return f"it has another AE title than {self.settings.ae_title}: set archive.ae_title to its own"
        if answer.result_source == 3:
            return "it is busy; try again later, or have it allow more associations"
        return f"make the AE title {self.calling_ae} known there, and check archive.ae_title"

    def _web(self, named: str, url: str) -> WebService:
        context = self._context(Side.CALL_HOST) or tls.public_context()
        token = read_token(self.settings.dicomweb_token_file, url, named)
        return WebService(url, named, self.settings.timeout_s, context, token)

    def _context(self, side: Side) -> ssl.SSLContext | None:
        """Asked for anew by each use: certificates are replaced while we run, and a bad one must not end the service."""
        try:
            return self._tls(side)
        except ConfigurationError as error:
            raise ArchiveError(str(error)) from error

    def _tls(self, side: Side) -> ssl.SSLContext | None:
        settings = self.settings.tls
        if settings is None:
            return None
        known = self._credentials.get(side)
        if known is None or known.settings != settings:
            known = self._credentials[side] = Credentials(settings, "archive.tls", side)
        return known.context()

    def __str__(self) -> str:
        return f"archive {self.settings.ae_title} at {self.settings.host}:{self.settings.port}"


def _prepare_socket(connection: socket.socket, limit_s: float) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else some 40 ms per object
    connection.settimeout(limit_s)  # pynetdicom leaves it without, and a peer that stops reading would hold us for ever


def _fitting(items: list[OutgoingInstance]) -> list[OutgoingInstance]:
    """The first items, as many as one association has contexts for (two for each class and syntax)."""
    kinds: set[tuple[str, str]] = set()
    for number, item in enumerate(items):
        kinds.add((item.sop_class_uid, item.transfer_syntax_uid))
        if len(kinds) * 2 > MAX_CONTEXTS:
            return items[:number]
    return list(items)


def _store_contexts(items: list[OutgoingInstance]) -> list[PresentationContext]:
    """For each class: each syntax as stored in a context of its own, then the uncompressed ones it can be turned into.

    Implicit VR little endian is among those: PS3.5 10.1 wants it proposed wherever the data set can be so encoded.
    """
    stored = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items)
    contexts = [build_context(*pair) for pair in stored]
    for sop_class in dict.fromkeys(sop_class for sop_class, syntax in stored if syntax in CONVERTIBLE):
        others = [syntax for syntax in UNCOMPRESSED if (sop_class, syntax) not in stored]
        if others:
            contexts.append(build_context(sop_class, others))
    return contexts


def _can_convert(item: OutgoingInstance, accepted: set[tuple[Any, Any]]) -> bool:
    to = any((item.sop_class_uid, syntax) in accepted for syntax in UNCOMPRESSED)
    return to and item.transfer_syntax_uid in CONVERTIBLE


def _refusal(association: Association, item: OutgoingInstance) -> str:
    rejected = [cx.status for cx in association.rejected_contexts if cx.abstract_syntax == item.sop_class_uid]
    why = ", ".join(sorted(set(rejected))) or "not proposed"
    return f"no presentation context for {item.sop_class_uid} in {item.transfer_syntax_uid} ({why})"


def _outcome(item: OutgoingInstance, kind: StoreOutcomeKind, status: int | None, reason: str) -> StoreOutcome:
    return StoreOutcome(item.sop_instance_uid, kind, status, reason)


def _status_text(status: int | None) -> str:
    return "nothing" if status is None else f"0x{status:04X}"
