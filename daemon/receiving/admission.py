"""Who may have an association: the settings' peers and limits, for all that are open, in whatever process they are served."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from config import settings
from daemon.dimse.presentation_contexts import supported_contexts
from daemon.events import bus
from daemon.events.outcomes import Rejection, RejectionKind
from daemon.receiving.peers import denied_classes, entries_for

# A-ASSOCIATE-RJ result, source, reason (PS3.8 table 9-21).
CALLING_AE_NOT_RECOGNIZED = (1, 1, 3)
CALLED_AE_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

SPARE = 32  # associations that are about to be rejected, beyond those that may be open


@dataclass(frozen=True)
class Asked:
    """What of an A-ASSOCIATE-RQ is decided on."""

    calling_ae: str
    called_ae: str
    abstract_syntaxes: frozenset[str]


@dataclass(frozen=True)
class Refused:
    """The association is rejected: A-ASSOCIATE-RJ result, source and reason, and the reason in words."""

    codes: tuple[int, int, int]
    reason: str


@dataclass(frozen=True)
class Admitted:
    """It is accepted. The peer may not use the SOP Classes `denied`, of which it asks for `in_vain` for the `reason`."""

    denied: frozenset[str] = frozenset()
    in_vain: frozenset[str] = frozenset()
    reason: str = ""


Decision = Refused | Admitted


class Admission:
    """Decides on associations, by their ids, from `enter` to `leave`. Thread-safe.

    `full` gives a reason why nothing more can be taken at present, or None. `on_rejection` is told of each caller not let in.
    """

    def __init__(
        self,
        chosen: settings.Listener,
        full: Callable[[], str | None],
        on_rejection: Callable[[Rejection], None],
    ) -> None:
        self._settings = chosen
        self._full = full
        self._on_rejection = on_rejection
        self._lock = threading.Lock()
        self._address: dict[str, str] = {}  # of each that is open
        self._admitted: set[str] = set()
        self._rejected: Counter[RejectionKind] = Counter()
        self.stopping = False

    @property
    def admitted(self) -> int:
        """Associations that were accepted and have not ended."""
        return len(self._admitted)

    @property
    def open(self) -> int:
        """These, and those that are asked for, rejected or ended just now."""
        return len(self._address)

    @property
    def rejected(self) -> dict[str, int]:
        """Callers not let in since the start, by kind."""
        with self._lock:
            return {kind.value: self._rejected[kind] for kind in RejectionKind}

    def replace_peers(self, peers: tuple[settings.Peer, ...]) -> None:
        self._settings = self._settings.model_copy(update={"peers": peers})

    def enter(self, association_id: str, address: str) -> bool:
        """Whether there is a place for one more, were it to be rejected in due form."""
        chosen = self._settings
        with self._lock:
            here = sum(other == address for other in self._address.values())
            if len(self._address) >= chosen.max_associations + SPARE:
                return False
            if here >= chosen.max_associations_per_address + SPARE:
                return False
            self._address[association_id] = address
            return True

    def leave(self, association_id: str) -> None:
        """Harmless when repeated."""
        with self._lock:
            self._address.pop(association_id, None)
            self._admitted.discard(association_id)

    def decide(self, association_id: str, asked: Asked) -> Decision:
        """Admit an association that has entered, or refuse it with the reason (PS3.8 table 9-21)."""
        with self._lock:
            address = self._address.get(association_id)
        if address is None:
            return Refused(TEMPORARY_CONGESTION, "it is over: the process that served it ended")
        refusal = self._refusal(association_id, address, asked)
        if refusal is not None:
            codes, kind, reason = refusal
            self.tell(Rejection(kind, address, asked.calling_ae, asked.called_ae, reason))
            return Refused(codes, reason)
        bus.publish(bus.AssociationAccepted(asked.calling_ae, address))
        if not (peers := self._settings.peers):
            return Admitted()
        entries = entries_for(peers, asked.calling_ae, address)
        denied = denied_classes(entries, _supported())
        if not (in_vain := asked.abstract_syntaxes & denied):
            return Admitted(denied)
        reason = "listener.peers does not let this peer do all that it asks for"
        self.tell(Rejection(RejectionKind.NOT_PERMITTED, address, asked.calling_ae, asked.called_ae, reason))
        return Admitted(denied, in_vain, reason)

    def _refusal(
        self, association_id: str, address: str, asked: Asked
    ) -> tuple[tuple[int, int, int], RejectionKind, str] | None:
        chosen = self._settings
        if chosen.called_ae_required and asked.called_ae != chosen.ae_title:
            reason = f"the called AE title is not {chosen.ae_title}"
            return CALLED_AE_NOT_RECOGNIZED, RejectionKind.CALLED_AE_TITLE, reason
        if chosen.peers and not entries_for(chosen.peers, asked.calling_ae, address):
            reason = "listener.peers does not name this calling AE title at this address"
            return CALLING_AE_NOT_RECOGNIZED, RejectionKind.UNKNOWN_PEER, reason
        if self.stopping:
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, "the service is stopping"
        if full := self._full():
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, full
        with self._lock:
            if len(self._admitted) >= chosen.max_associations:
                reason = f"listener.max_associations = {chosen.max_associations} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            here = sum(self._address.get(other) == address for other in self._admitted)
            if here >= (most := chosen.max_associations_per_address):
                reason = f"listener.max_associations_per_address = {most} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            if association_id not in self._address:  # it left meanwhile, and would never leave again
                return TEMPORARY_CONGESTION, RejectionKind.BUSY, "it is over: the process that served it ended"
            self._admitted.add(association_id)
        return None

    def tell(self, rejection: Rejection) -> None:
        """Count a caller that was not let in."""
        with self._lock:
            self._rejected[rejection.kind] += 1
        bus.publish(rejection)
        self._on_rejection(rejection)


@functools.cache
def _supported() -> frozenset[str]:
    return frozenset(str(context.abstract_syntax) for context in supported_contexts())
