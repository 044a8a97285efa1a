"""Find and fetch single instances by C-FIND, C-GET and C-MOVE (PS3.4 annex C, Study Root)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from io import BytesIO
from itertools import product
from pathlib import Path
from uuid import uuid4

import structlog
from pydicom import Dataset, uid
from pynetdicom import build_role, evt, sop_class
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from daemon.dicom import status as dimse_status
from daemon.dicom.dataset_scan import scan_data_set
from daemon.dicom.sop_classes import IMAGE_CLASSES, SEGMENTATION_CLASSES
from daemon.errors import ArchiveError, RefusedInstance
from daemon.storage.received_instance import ReceivedInstance, received_instance

FIND = sop_class.StudyRootQueryRetrieveInformationModelFind
GET = sop_class.StudyRootQueryRetrieveInformationModelGet
MOVE = sop_class.StudyRootQueryRetrieveInformationModelMove

# One context per syntax (an archive then need not transcode) and one for C-GET itself: the association's
# limit of 128 contexts holds no more than the image classes and two for segmentations.
SYNTAXES = (
    (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian),
    (uid.JPEGLosslessSV1,),
    (uid.JPEGLossless,),
    (uid.JPEGLSLossless,),
    (uid.JPEGLSNearLossless,),
    (uid.JPEG2000Lossless,),
    (uid.JPEG2000,),
    (uid.JPEGBaseline8Bit,),
    (uid.RLELossless,),
    (uid.DeflatedExplicitVRLittleEndian,),
)
SEGMENTATION_SYNTAXES = (SYNTAXES[0], (uid.RLELossless,), (uid.DeflatedExplicitVRLittleEndian,))

# Final statuses of C-GET and C-MOVE; how many sub-operations failed is a count of its own.
_DONE = (dimse_status.SUCCESS, dimse_status.SUBOPERATIONS_COMPLETE_WITH_FAILURES)
_RETRYABLE = (
    dimse_status.UNABLE_TO_CALCULATE_MATCHES,
    dimse_status.UNABLE_TO_PERFORM_SUBOPERATIONS,
    dimse_status.CANCEL,
)
# Times archive.timeout_s: retrieval may wait for a tape robot, and a wait covers the transfer of an image.
RETRIEVE_PATIENCE = 5

log = structlog.get_logger()


@dataclass(frozen=True)
class Wanted:
    """An instance to ask for, with its study and series as far as they are known (None: any)."""

    study_uid: str | None
    series_uid: str | None
    sop_uid: str


class RetrieveKind(Enum):
    """RETRIEVED: accepted here (C-GET), or reported as sent (C-MOVE). MISSING: the archive has none."""

    RETRIEVED = "retrieved"
    MISSING = "missing"
    RETRY = "retry"
    FAILED = "failed"


@dataclass(frozen=True)
class RetrieveOutcome:
    """How the retrieval of one instance ended.

    `status` is the last DIMSE status, None if there was none.
    """

    wanted: Wanted
    kind: RetrieveKind
    status: int | None
    reason: str


class RetrievedInstances:
    """Takes the instances of a C-GET: each becomes a file in `folder`, which goes to `accept`.

    Only the instance asked for is taken. `status` is our C-STORE response for it, None if it did
    not come.
    """

    def __init__(self, folder: Path, accept: Callable[[ReceivedInstance], None]) -> None:
        self._folder = folder
        self._accept = accept
        self._name = f"c-get-{uuid4().hex[:12]}"
        self.expected = ""
        self.status: int | None = None

    def __call__(self, event: evt.Event) -> int:
        """Handle EVT_C_STORE; return the C-STORE status."""
        path = self._folder / f"{self._name}-{event.request.MessageID}.part"
        status = status_of(self.expected, path, lambda: self._take(event, path))
        if event.request.AffectedSOPInstanceUID == self.expected:
            self.status = status
        return status

    def _take(self, event: evt.Event, path: Path) -> None:
        request, association = event.request, event.assoc
        syntax = str(event.context.transfer_syntax)
        facts = scan_data_set(BytesIO(event.encoded_dataset(include_meta=False)), syntax)
        named = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        if (facts.sop_class_uid, facts.sop_instance_uid) != named or facts.sop_instance_uid != self.expected:
            raise RefusedInstance(
                dimse_status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS,
                "the archive sent another instance than it was asked for",
            )
        path.write_bytes(event.encoded_dataset())
        self._accept(
            received_instance(
                path,
                facts,
                transfer_syntax_uid=syntax,
                calling_ae=association.acceptor.ae_title,
                called_ae=association.requestor.ae_title,
                peer_address=association.acceptor.address,
                association_id=self._name,
            )
        )


def status_of(expected: str, path: Path, take: Callable[[], None]) -> int:
    """Return the C-STORE status of an instance that `take` writes to `path` and accepts.

    `path` is deleted.
    """
    try:
        take()
    except RefusedInstance as error:
        log.warning("retrieved instance refused", sop_instance_uid=expected, reason=error.reason)
        return error.status
    except ArchiveError:
        raise
    except OSError as error:
        log.error("retrieved instance not written", sop_instance_uid=expected, reason=error.strerror)
        return dimse_status.OUT_OF_RESOURCES
    except Exception as error:
        log.error("retrieved instance not accepted", sop_instance_uid=expected, reason=type(error).__name__)
        return dimse_status.PROCESSING_FAILURE
    finally:
        path.unlink(missing_ok=True)
    return dimse_status.SUCCESS


def get_contexts() -> tuple[list[PresentationContext], list[SCP_SCU_RoleSelectionNegotiation]]:
    """Return the contexts of a C-GET association (at most 128), and the roles for storing to us."""
    pairs = [*product(IMAGE_CLASSES, SYNTAXES), *product(SEGMENTATION_CLASSES, SEGMENTATION_SYNTAXES)]
    storage = [build_context(stored, list(syntaxes)) for stored, syntaxes in pairs]
    roles = [build_role(stored, scp_role=True) for stored in (*IMAGE_CLASSES, *SEGMENTATION_CLASSES)]
    return [build_context(GET), *storage], roles


def find(association: Association, wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return those of `wanted` that the archive holds, with study and series filled in from its answers.

    Raises:
        ArchiveError: the association broke, or an answer did not come in time.
    """
    found = (_find_one(association, item) for item in wanted)
    return [item for item in found if item is not None]


def get(association: Association, wanted: Iterable[Wanted], receiver: RetrievedInstances) -> Iterator[RetrieveOutcome]:
    """C-GET each of `wanted`.

    Instances go to `receiver`, which must handle the association's EVT_C_STORE.
    """

    def ask(item: Wanted) -> Dataset:
        receiver.expected, receiver.status = item.sop_uid, None
        return _last(association.send_c_get(_identifier(item), GET))

    for item, final in _each(wanted, ask):
        yield logged(judge_get(item, final, receiver.status if receiver.expected == item.sop_uid else None))


def move(association: Association, wanted: Iterable[Wanted], destination_ae: str) -> Iterator[RetrieveOutcome]:
    """C-MOVE each of `wanted` to the node that the archive knows as `destination_ae`."""

    def ask(item: Wanted) -> Dataset:
        return _last(association.send_c_move(_identifier(item), destination_ae, MOVE))

    for item, final in _each(wanted, ask):
        yield logged(judge_move(item, final))


def _each(wanted: Iterable[Wanted], ask: Callable[[Wanted], Dataset]) -> Iterator[tuple[Wanted, Dataset]]:
    """Yield each item and its final response.

    The response is empty for the item that breaks the association and for all behind it.
    """
    broken = False
    for item in wanted:
        final = Dataset()
        if not broken:
            with contextlib.suppress(RuntimeError):  # pynetdicom: the association is over
                final = ask(item)
            broken = "Status" not in final
        yield item, final


def judge_get(wanted: Wanted, final: Dataset, stored: int | None) -> RetrieveOutcome:
    """Return the outcome from the final C-GET response and our own C-STORE response (None: nothing came)."""
    if stored == dimse_status.SUCCESS:
        return RetrieveOutcome(wanted, RetrieveKind.RETRIEVED, stored, "accepted")
    if stored is not None:
        kind = RetrieveKind.RETRY if dimse_status.is_out_of_resources(stored) else RetrieveKind.FAILED
        return RetrieveOutcome(wanted, kind, stored, f"we refused it with 0x{stored:04X}")
    outcome = judge_move(wanted, final)
    if outcome.kind is RetrieveKind.RETRIEVED:
        return replace(outcome, kind=RetrieveKind.RETRY, reason="counted as sent, but it did not come")
    return outcome


def judge_move(wanted: Wanted, final: Dataset) -> RetrieveOutcome:
    """Return the outcome from the status and the counts of the final C-MOVE response (PS3.4 table C.4-2)."""
    status = final.get("Status")
    if status is None:
        return RetrieveOutcome(wanted, RetrieveKind.RETRY, None, "no answer: the archive was silent or broke off")
    completed = final.get("NumberOfCompletedSuboperations") or 0
    warned = final.get("NumberOfWarningSuboperations") or 0
    failed = final.get("NumberOfFailedSuboperations") or 0
    if status in _DONE and not failed:
        if completed or warned:
            return RetrieveOutcome(wanted, RetrieveKind.RETRIEVED, status, "sent")
        return RetrieveOutcome(wanted, RetrieveKind.MISSING, status, "the archive does not hold it")
    if status in (*_DONE, *_RETRYABLE):
        return RetrieveOutcome(wanted, RetrieveKind.RETRY, status, f"0x{status:04X}, {failed} sub-operations failed")
    meaning = {
        dimse_status.MOVE_DESTINATION_UNKNOWN: "the archive does not know our AE title as a C-MOVE destination",
        dimse_status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "the archive cannot make sense of the identifier",
    }.get(status, "the archive refused")
    return RetrieveOutcome(wanted, RetrieveKind.FAILED, status, f"0x{status:04X} {meaning}")


def _find_one(association: Association, wanted: Wanted) -> Wanted | None:
    found = _query(association, wanted)
    if found or wanted.series_uid or not wanted.study_uid:
        return found[0] if found else None
    # PS3.4 C.4.1.2 lets an archive require the series: try each series of the study.
    for series in _query(association, wanted, level="SERIES"):
        if found := _query(association, replace(wanted, series_uid=series.series_uid)):
            return found[0]
    return None


def _query(association: Association, wanted: Wanted, level: str = "IMAGE") -> list[Wanted]:
    if not association.is_established:
        raise ArchiveError("the archive broke the association off during C-FIND")
    found = []
    status: int | None = None
    for answer, match in association.send_c_find(_identifier(wanted, level), FIND):
        status = answer.get("Status")
        if status is not None and dimse_status.is_pending(status) and match is not None:
            candidate = Wanted(
                match.get("StudyInstanceUID") or wanted.study_uid,
                match.get("SeriesInstanceUID") or wanted.series_uid,
                match.get("SOPInstanceUID") or wanted.sop_uid,
            )
            # An archive that does not filter by instance answers with every other one, too.
            if level == "SERIES" or candidate.sop_uid == wanted.sop_uid:
                found.append(candidate)
    if status is None:
        raise ArchiveError("the archive gave no answer to C-FIND, or broke the association off")
    if status != dimse_status.SUCCESS:
        log.warning("C-FIND refused", sop_instance_uid=wanted.sop_uid, level=level, status=f"0x{status:04X}")
    return found


def _identifier(wanted: Wanted, level: str = "IMAGE") -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = wanted.study_uid or ""
    identifier.SeriesInstanceUID = wanted.series_uid or ""
    if level == "IMAGE":
        identifier.SOPInstanceUID = wanted.sop_uid
    return identifier


def _last(answers: Iterable[tuple[Dataset, Dataset | None]]) -> Dataset:
    final = Dataset()
    for final, _ in answers:  # noqa: B007 -- pending answers first, the final one last
        pass
    return final


def logged(outcome: RetrieveOutcome) -> RetrieveOutcome:
    """Log `outcome`, and return it."""
    level = log.info if outcome.kind is RetrieveKind.RETRIEVED else log.warning
    level("retrieve", sop_instance_uid=outcome.wanted.sop_uid, outcome=outcome.kind.value, reason=outcome.reason)
    return outcome
