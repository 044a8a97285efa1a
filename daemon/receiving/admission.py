"""Decides who may have an association, by the settings' peers and limits, for all processes."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from config.settings import Listener, Peer
from daemon.dimse.presentation_contexts import supported_contexts
from daemon.events import bus
from daemon.events.outcomes import Rejection, RejectionKind
from daemon.receiving.peers import denied_classes, entries_for

# A-ASSOCIATE-RJ result, source, reason (PS3.8 table 9-21).
CALLING_AE_NOT_RECOGNIZED = (1, 1, 3)
CALLED_AE_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

SPARE_ASSOCIATIONS = 32  # that are about to be rejected, beyond those that may be open


@dataclass(frozen=True)
class AssociationRequest:
    """The parts of an A-ASSOCIATE-RQ that decide on it."""

    calling_ae: str
    called_ae: str
    abstract_syntaxes: frozenset[str]


@dataclass(frozen=True)
class Rejected:
    """The association is rejected; `codes` are result, source and reason of A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    codes: tuple[int, int, int]
    reason: str


@dataclass(frozen=True)
class Admitted:
    """The association is accepted.

    The peer may not use the SOP Classes `denied`; `requested_denied` are those of them that it requests, for
    `reason`.
    """

    denied: frozenset[str] = frozenset()
    requested_denied: frozenset[str] = frozenset()
    reason: str = ""


Decision = Rejected | Admitted


class Admission:
    """Decides on associations, named by their ids, from `enter` to `leave`. Thread-safe.

    `full` returns why no instance can be taken now, or None. `on_rejection` is told of each rejected caller.
    """

    def __init__(
        self,
        settings: Listener,
        full: Callable[[], str | None],
        on_rejection: Callable[[Rejection], None],
    ) -> None:
        self._settings = settings
        self._full = full
        self._on_rejection = on_rejection
        self._lock = threading.Lock()
        self._address: dict[str, str] = {}  # of each open association
        self._admitted: set[str] = set()
        self._rejected: Counter[RejectionKind] = Counter()
        self.stopping = False

    @property
    def admitted(self) -> int:
        """How many associations were accepted and have not ended."""
        return len(self._admitted)

    @property
    def open(self) -> int:
        """How many associations are open, including those not decided on or being rejected."""
        return len(self._address)

    @property
    def rejected(self) -> dict[str, int]:
        """Callers rejected since the start, by kind."""
        with self._lock:
            return {kind.value: self._rejected[kind] for kind in RejectionKind}

    def replace_peers(self, peers: tuple[Peer, ...]) -> None:
        """Decide by these peers from now on."""
        self._settings = self._settings.model_copy(update={"peers": peers})

    def enter(self, association_id: str, address: str) -> bool:
        """Register a requested association; return False if there are too many even to reject it."""
        settings = self._settings
        with self._lock:
            here = sum(other == address for other in self._address.values())
            if len(self._address) >= settings.max_associations + SPARE_ASSOCIATIONS:
                return False
            if here >= settings.max_associations_per_address + SPARE_ASSOCIATIONS:
                return False
            self._address[association_id] = address
            return True

    def leave(self, association_id: str) -> None:
        """Forget an association that has ended. Safe to repeat."""
        with self._lock:
            self._address.pop(association_id, None)
            self._admitted.discard(association_id)

    def decide(self, association_id: str, request: AssociationRequest) -> Decision:
        """Accept an association that has entered, or reject it with the reason (PS3.8 table 9-21)."""
        with self._lock:
            address = self._address.get(association_id)
        if address is None:
            return Rejected(TEMPORARY_CONGESTION, "the association ended with the process that served it")
        rejection = self._rejection(association_id, address, request)
        if rejection is not None:
            codes, kind, reason = rejection
            self.count_rejection(Rejection(kind, address, request.calling_ae, request.called_ae, reason))
            return Rejected(codes, reason)
        bus.publish(bus.AssociationAccepted(request.calling_ae, address))
        if not (peers := self._settings.peers):
            return Admitted()
        entries = entries_for(peers, request.calling_ae, address)
        denied = denied_classes(entries, _supported())
        if not (requested_denied := request.abstract_syntaxes & denied):
            return Admitted(denied)
        reason = "listener.peers does not permit this peer some of the SOP Classes that it requests"
        self.count_rejection(
            Rejection(RejectionKind.NOT_PERMITTED, address, request.calling_ae, request.called_ae, reason)
        )
        return Admitted(denied, requested_denied, reason)

    def _rejection(
        self, association_id: str, address: str, request: AssociationRequest
    ) -> tuple[tuple[int, int, int], RejectionKind, str] | None:
        settings = self._settings
        if settings.called_ae_required and request.called_ae != settings.ae_title:
            reason = f"the called AE title is not {settings.ae_title}"
            return CALLED_AE_NOT_RECOGNIZED, RejectionKind.CALLED_AE_TITLE, reason
        if settings.peers and not entries_for(settings.peers, request.calling_ae, address):
            reason = "listener.peers does not name this calling AE title at this address"
            return CALLING_AE_NOT_RECOGNIZED, RejectionKind.UNKNOWN_PEER, reason
        if self.stopping:
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, "the service is stopping"
        if full := self._full():
            return TEMPORARY_CONGESTION, RejectionKind.BUSY, full
        with self._lock:
            if len(self._admitted) >= settings.max_associations:
                reason = f"listener.max_associations = {settings.max_associations} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            here = sum(self._address.get(other) == address for other in self._admitted)
            if here >= (most := settings.max_associations_per_address):
                reason = f"listener.max_associations_per_address = {most} are open"
                return LOCAL_LIMIT_EXCEEDED, RejectionKind.BUSY, reason
            if association_id not in self._address:  # it has left, and would stay admitted for ever
                return TEMPORARY_CONGESTION, RejectionKind.BUSY, "the association ended with the process that served it"
            self._admitted.add(association_id)
        return None

    def count_rejection(self, rejection: Rejection) -> None:
        """Count a rejected caller, and publish it."""
        with self._lock:
            self._rejected[rejection.kind] += 1
        bus.publish(rejection)
        self._on_rejection(rejection)


@functools.cache
def _supported() -> frozenset[str]:
    return frozenset(str(context.abstract_syntax) for context in supported_contexts())
