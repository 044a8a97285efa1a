"""An archive made of pynetdicom that stores and takes requests for storage commitment, and answers as it is
told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from tests.support.archive_stubs import SR, stub

NO_SUCH_INSTANCE = 0x0112


@dataclass
class CommittingArchive:
    """What it was asked and sent; `refuse` says which instances a result lists as failed, and with which
    reason.
    """

    port: int = 0
    stored: list[str] = field(default_factory=list)
    requests: list[Dataset] = field(default_factory=list)
    response_statuses: list[int | None] = field(default_factory=list)
    refuse: Callable[[str], int | None] = lambda uid: None

    def result(self, request: Dataset) -> tuple[int, Dataset]:
        """Event type and information (PS3.4 table J.3-2)."""
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        committed, failed = [], []
        for item in request.ReferencedSOPSequence:
            reason = self.refuse(str(item.ReferencedSOPInstanceUID))
            answer = Dataset()
            answer.ReferencedSOPClassUID = item.ReferencedSOPClassUID
            answer.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
            if reason is not None:
                answer.FailureReason = reason
            (committed if reason is None else failed).append(answer)
        if committed:
            information.ReferencedSOPSequence = committed
        if failed:
            information.FailedSOPSequence = failed
        return (2 if failed else 1), information

    def report(self, association: Any, request: Dataset) -> None:
        event_type, information = self.result(request)
        status, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        self.response_statuses.append(status.get("Status"))

    def call_back(self, port: int, request: Dataset, calling: str = "STUB", called: str = "MAMMOD") -> None:
        """The result on a new association to a listener, we being the SCP of the SOP class."""
        ae = AE(calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        roles: list[SCP_SCU_RoleSelectionNegotiation] = [build_role(StorageCommitmentPushModel, scp_role=True)]
        context = build_context(StorageCommitmentPushModel, ExplicitVRLittleEndian)
        association = ae.associate("127.0.0.1", port, contexts=[context], ae_title=called, ext_neg=roles)
        assert association.is_established
        (accepted,) = association.accepted_contexts
        assert accepted.as_scp, "our role of SCP was accepted"
        self.report(association, request)
        association.release()


@contextmanager
def committing_archive(
    on_request: Callable[[CommittingArchive, Any, Dataset], None], status: int = 0x0000
) -> Iterator[CommittingArchive]:
    """`on_request(archive, association, request)` runs in a thread of its own after the request was
    answered with `status`.
    """
    archive = CommittingArchive()
    threads: list[threading.Thread] = []
    answering: list[tuple[Any, Dataset]] = []

    def on_store(event: evt.Event) -> int:
        archive.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def on_action(event: evt.Event) -> tuple[int, None]:
        archive.requests.append(event.action_information)
        if status == 0x0000:
            answering.append((event.assoc, event.action_information))
        return status, None

    def on_sent(event: evt.Event) -> None:
        if isinstance(event.pdu, P_DATA_TF) and answering and answering[0][0] is event.assoc:
            threads.append(threading.Thread(target=on_request, args=(archive, *answering.pop()), daemon=True))
            threads[-1].start()

    contexts = [(SR, [ExplicitVRLittleEndian]), (str(StorageCommitmentPushModel), [ExplicitVRLittleEndian])]
    with stub(on_store, contexts, ((evt.EVT_N_ACTION, on_action), (evt.EVT_PDU_SENT, on_sent))) as port:
        archive.port = port
        yield archive
        for thread in threads:
            thread.join(20)
