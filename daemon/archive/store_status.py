"""Instances that are sent to the archive, and how its answer to each is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pynetdicom.status import GENERAL_STATUS, STORAGE_SERVICE_CLASS_STATUS

from daemon.dicom.status import (
    DUPLICATE_SOP_INSTANCE,
    RESOURCE_LIMITATION,
    SUCCESS,
    is_out_of_resources,
    is_warning,
)
from daemon.events.outcomes import StoreOutcomeKind

_STATUSES = {**GENERAL_STATUS, **STORAGE_SERVICE_CLASS_STATUS}


@dataclass(frozen=True)
class OutgoingInstance:
    """One Part 10 file to be stored, encoded in `transfer_syntax_uid`."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


def judge_store_status(status: int) -> tuple[StoreOutcomeKind, str]:
    """Return the outcome and reason of a C-STORE response status or STOW-RS failure reason.

    See PS3.4 B.2.3 and PS3.7 annex C. Warnings count as stored. Only a lack of resources is worth sending
    the same bytes again. A status that C-STORE does not know fails: repeating it for ever would hide it.
    """
    reason = f"0x{status:04X} {_meaning(status)}"
    if status == SUCCESS or is_warning(status):
        return StoreOutcomeKind.STORED, reason
    if status == DUPLICATE_SOP_INSTANCE:  # our UIDs are derived from the content: what is there is the same report
        return StoreOutcomeKind.STORED, f"{reason}: the archive already holds it"
    if is_out_of_resources(status) or status == RESOURCE_LIMITATION:
        return StoreOutcomeKind.RETRY, reason
    return StoreOutcomeKind.FAILED, reason


def _meaning(status: int) -> str:
    if status == RESOURCE_LIMITATION:
        return "Failure: resource limitation"
    category, meaning = _STATUSES.get(status, ("Unknown", "not a status of C-STORE"))
    return f"{category}: {meaning}" if meaning else category
