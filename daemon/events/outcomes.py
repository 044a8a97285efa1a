"""`Rejection`: a caller that was not let in, for the count, the log and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RejectionKind(StrEnum):
    """Why: what an operator looks for, and the names of the counts in `mammod status`."""

    UNKNOWN_PEER = "unknown_peer"  # listener.peers does not name this AE title at this address
    CALLED_AE_TITLE = "called_ae_title"  # another AE title than ours was called
    NOT_PERMITTED = "not_permitted"  # the peer may call, but not do this
    TLS = "tls"  # no handshake: version, suite, certificate, or no TLS at all
    BUSY = "busy"  # limits, disk nearly full, stopping: no fault of the caller


@dataclass(frozen=True)
class Rejection:
    """One refusal; the AE titles are "" where none was said."""

    kind: RejectionKind
    address: str
    calling_ae: str
    called_ae: str
    reason: str
