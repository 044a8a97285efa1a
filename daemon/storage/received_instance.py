"""`ReceivedInstance`: one instance as the listener hands it over, complete and checked, before it is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReceivedInstance:
    """A received instance: `path` is a complete Part 10 file inside the spool's own file system, not yet durable.

    The UIDs are valid by PS3.5 section 9 and equal in the C-STORE command and the data set; the encoding was walked to its
    end. `transfer_syntax_uid` is that of the accepted presentation context, as received and as stored. `is_large`: to read
    it takes long, or much memory. What was seen while it was received need not be read again, None where it was not looked
    for: the UIDs of study and series ("": there is none) as they stand there, `digest` of the data set (`daemon.dicom.digest`).
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    peer_address: str
    association_id: str
    is_large: bool = False
    study_uid: str | None = None
    series_uid: str | None = None
    digest: str | None = None
