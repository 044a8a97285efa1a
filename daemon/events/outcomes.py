"""How one step ended: an instance received, a caller rejected, a report stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Arrival(Enum):
    """What an accepted instance is to the ledger (invariant 4)."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CHANGED = "changed"


class RejectionKind(StrEnum):
    """Why a caller was rejected; the values name the counts in `mammod status`."""

    UNKNOWN_PEER = "unknown_peer"  # listener.peers does not name this AE title at this address
    CALLED_AE_TITLE = "called_ae_title"  # another AE title than ours was called
    NOT_PERMITTED = "not_permitted"  # the peer may call, but not do this
    TLS = "tls"  # no handshake: version, suite, certificate, or no TLS at all
    BUSY = "busy"  # limits, disk nearly full, stopping: not the caller's fault


@dataclass(frozen=True)
class Rejection:
    """One rejected caller; an AE title that was not sent is ""."""

    kind: RejectionKind
    address: str
    calling_ae: str
    called_ae: str
    reason: str


class StoreOutcomeKind(Enum):
    """STORED: the archive holds it. RETRY: later, unchanged. FAILED: never, as it is."""

    STORED = "stored"
    RETRY = "retry"
    FAILED = "failed"


@dataclass(frozen=True)
class StoreOutcome:
    """How storing one instance ended; `status` is the C-STORE status or STOW-RS failure reason, if any."""

    sop_instance_uid: str
    kind: StoreOutcomeKind
    status: int | None
    reason: str
