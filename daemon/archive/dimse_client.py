"""The archive over DIMSE: C-ECHO, C-STORE, C-FIND, C-GET, C-MOVE, and the request for storage commitment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, Verification

from config.settings import Archive as ArchiveSettings
from daemon.archive import query_retrieve, wado_rs
from daemon.archive.association import ArchiveAssociations, ContextsRefused
from daemon.archive.credentials import ArchiveCredentials
from daemon.archive.query_retrieve import RETRIEVE_PATIENCE, RetrieveOutcome, Wanted
from daemon.archive.store_status import OutgoingInstance, judge_store_status
from daemon.dimse.n_event_report import take_report
from daemon.errors import ArchiveError, CommitmentRefused
from daemon.events import bus
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance

MAX_CONTEXTS = 128  # per association (PS3.8 9.3.2.2: odd numbers 1 to 255)
# After this many associations in a row that break before an answer, the archive is at fault, not the
# instance.
MAX_BREAKS = 2
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
CONVERTIBLE = (*UNCOMPRESSED, DeflatedExplicitVRLittleEndian)

# A file that is sent by its path is sent as stored, byte by byte, and is never held in memory as a whole.
_config.STORE_SEND_CHUNKED_DATASET = True


class DimseClient:
    """Calls the archive of `settings` as `calling_ae`.

    Instances from C-GET are written into `incoming` first.
    """

    def __init__(
        self, settings: ArchiveSettings, calling_ae: str, incoming: Path, credentials: ArchiveCredentials
    ) -> None:
        self._settings = settings
        self._incoming = incoming
        self._associations = ArchiveAssociations(settings, calling_ae, credentials)

    def associate(self, contexts: Sequence[PresentationContext]) -> AbstractContextManager[Association]:
        """Open an association for these contexts; see `ArchiveAssociations.open`."""
        return self._associations.open(contexts)

    def echo(self) -> None:
        """Send C-ECHO.

        Raises:
            ArchiveError: it cannot be reached, refuses the association or answers anything but success.
        """
        with self._associations.open([build_context(Verification)]) as association:
            status = association.send_c_echo().get("Status")
        if status != 0x0000:
            raise ArchiveError(f"{self} answered C-ECHO with {_status_text(status)}; expected 0x0000")

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Send `items` by C-STORE; yield the outcome of each, in order, as soon as it is known.

        All go over one association while it lasts. An instance that breaks it is to be retried, and those
        behind it are sent on a new one. After `MAX_BREAKS` breaks in a row without an answer, or if the
        association is refused, the rest is to be retried.
        """
        waiting = list(items)
        breaks = 0
        while waiting:
            batch = _fitting(waiting)
            try:
                with self._associations.open(_store_contexts(batch)) as association:
                    answered = 0
                    for number, item in enumerate(batch):
                        # The flag lags behind an abort, and a request sent then waits for its whole time
                        # limit.
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
            if breaks == MAX_BREAKS:
                reason = f"{self} broke {breaks} associations in a row; not tried"
                yield from (_outcome(item, StoreOutcomeKind.RETRY, None, reason) for item in waiting)
                return

    def _send(self, association: Association, item: OutgoingInstance, message_id: int) -> StoreOutcome:
        """Send one C-STORE.

        After a fault on our side the association is aborted, since a message may be incomplete.
        """
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
            is_passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            kind = StoreOutcomeKind.RETRY if is_passing else StoreOutcomeKind.FAILED
            return _outcome(item, kind, None, f"the stored file cannot be read: {type(error).__name__}")
        status = answer.get("Status")
        if status is None:
            is_silent = monotonic() - began >= self._settings.timeout_s
            association.abort()  # pynetdicom may not have noticed yet that it is over
            what = f"gave no answer in {self._settings.timeout_s:g} s" if is_silent else "broke the association off"
            bus.publish(bus.ArchiveSilent(f"{self} {what}"))
            return _outcome(item, StoreOutcomeKind.RETRY, None, f"{self} {what}")
        kind, reason = judge_store_status(status)
        return _outcome(item, kind, status, reason)

    def find_instances(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Return those of `wanted` that the archive holds (C-FIND), with study and series filled in.

        Raises:
            ArchiveError: the archive cannot be asked, or does not answer.
        """
        with self._associations.open([build_context(query_retrieve.FIND)]) as association:
            return query_retrieve.find(association, wanted)

    def get_instances(
        self, wanted: Iterable[Wanted], accept: Callable[[ReceivedInstance], None], max_size: int = wado_rs.MAX_INSTANCE
    ) -> list[RetrieveOutcome]:
        """Fetch each of `wanted` by C-GET; return the outcomes in order.

        Each instance goes to `accept`, which refuses it by RefusedInstance or OSError. `max_size` has no
        effect: pynetdicom reads a whole instance before it is seen.

        Raises:
            ArchiveError: the association cannot be had; a break later makes the rest RETRY.
        """
        limit_s = RETRIEVE_PATIENCE * self._settings.timeout_s
        contexts, roles = query_retrieve.get_contexts()
        receiver = query_retrieve.RetrievedInstances(self._incoming, accept)
        handlers = [(evt.EVT_C_STORE, receiver)]
        with self._associations.open(
            contexts, ext_neg=roles, handlers=handlers, response_timeout_s=limit_s
        ) as association:
            return list(query_retrieve.get(association, wanted, receiver))

    def move_instances(self, wanted: Iterable[Wanted], destination_ae: str) -> list[RetrieveOutcome]:
        """Have the archive send each of `wanted` to `destination_ae` (our listener) by C-MOVE.

        Returns the outcomes.

        Raises:
            ArchiveError: the association cannot be had; a break later makes the rest RETRY.
        """
        limit_s = RETRIEVE_PATIENCE * self._settings.timeout_s
        contexts = [build_context(query_retrieve.MOVE)]
        with self._associations.open(contexts, response_timeout_s=limit_s) as association:
            return list(query_retrieve.move(association, wanted, destination_ae))

    def request_commitment(
        self,
        transaction_uid: str,
        instances: Sequence[tuple[str, str]],
        take: Callable[[Dataset], int],
        *,
        answered: threading.Event,
        linger_s: float,
    ) -> None:
        """Ask the archive to commit `instances` (SOP class, SOP instance) by N-ACTION (PS3.4 J.3.2).

        The association stays open until `answered` is set or `linger_s` seconds passed. An answer on it goes
        to `take`, which returns its status; `answered` is set once that status was sent.

        Raises:
            ContextsRefused, CommitmentRefused: it knows no storage commitment, or answers with a failure.
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
        contexts = [build_context(StorageCommitmentPushModel)]
        with self._associations.open(contexts, handlers=handlers) as association:
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

    def __str__(self) -> str:
        return str(self._associations)


def _fitting(items: list[OutgoingInstance]) -> list[OutgoingInstance]:
    """Return the first items, as many as one association has contexts for (two for each class and syntax)."""
    kinds: set[tuple[str, str]] = set()
    for number, item in enumerate(items):
        kinds.add((item.sop_class_uid, item.transfer_syntax_uid))
        if len(kinds) * 2 > MAX_CONTEXTS:
            return items[:number]
    return list(items)


def _store_contexts(items: list[OutgoingInstance]) -> list[PresentationContext]:
    """Return, for each class, a context for each stored syntax and one for the convertible syntaxes.

    Those include Implicit VR Little Endian: PS3.5 10.1 requires it proposed if the data set can be encoded
    so.
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
