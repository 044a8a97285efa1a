"""What goes out to the archive, and how its answer is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pynetdicom.status import GENERAL_STATUS, STORAGE_SERVICE_CLASS_STATUS

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
    """The kind and reason of a C-STORE response status (PS3.4 B.2.3, PS3.7 annex C) or STOW-RS failure reason.

    Warnings count as stored. Only a lack of resources is worth sending the same bytes again. A status that C-STORE does
    not know fails: repeating it for ever would hide it.
    """
    reason = f"0x{status:04X} {_meaning(status)}"
    if status == 0x0000 or status in (0x0001, 0x0107, 0x0116) or status >> 12 == 0xB:
        return StoreOutcomeKind.STORED, reason
    if status == 0x0111:  # our UIDs are derived from the content: what is there is the same report
        return StoreOutcomeKind.STORED, f"{reason}: the archive already holds it"
    if status >> 8 == 0xA7 or status == 0x0213:
        return StoreOutcomeKind.RETRY, reason
    return StoreOutcomeKind.FAILED, reason


def _meaning(status: int) -> str:
    if status == 0x0213:
        return "Failure: resource limitation"
    category, meaning = _STATUSES.get(status, ("Unknown", "not a status of C-STORE"))
    return f"{category}: {meaning}" if meaning else category
