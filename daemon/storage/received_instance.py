"""`ReceivedInstance`: one instance as it was received, complete and checked, before it is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daemon.dicom.dataset_scan import DataSetFacts


@dataclass(frozen=True)
class ReceivedInstance:
    """A received instance, whose encoding was walked to its end; `path` is not yet durable.

    `path` is a complete Part 10 file in the spool's own file system. SOP Class and SOP Instance UID are valid
    by PS3.5 section 9 and equal in command and data set. `transfer_syntax_uid` is that of the data set as
    received and stored.

    What was seen while it was received need not be read again; None if it was not looked at: Study and Series
    Instance UID as they stand in the data set ("" if it has none), `digest` of the data set
    (`daemon.dicom.digest`).
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    peer_address: str
    association_id: str
    is_large: bool = False  # reading it takes long, or much memory
    study_uid: str | None = None
    series_uid: str | None = None
    digest: str | None = None


def received_instance(
    path: Path,
    facts: DataSetFacts,
    *,
    transfer_syntax_uid: str,
    calling_ae: str,
    called_ae: str,
    peer_address: str,
    association_id: str,
    digest: str | None = None,
) -> ReceivedInstance:
    """Return the instance at `path` from what the scan of its data set found and who sent it."""
    return ReceivedInstance(
        path=path,
        sop_class_uid=facts.sop_class_uid,
        sop_instance_uid=facts.sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae=calling_ae,
        called_ae=called_ae,
        peer_address=peer_address,
        association_id=association_id,
        is_large=facts.is_large,
        study_uid=facts.study_uid,
        series_uid=facts.series_uid,
        digest=digest,
    )
