"""The audit trail: what the service tells of itself, in messages of DICOM PS3.15 A.5.

Told are start and stop, instances transferred in and out (one message for each study of an association), and callers that
were not let in. `audit_message` writes the messages, `audit_delivery` takes them away.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import Row

from config.settings import Settings
from daemon.audit import messages
from daemon.audit.messages import Action, Code, Message, NetworkNode, Source
from daemon.audit.transport import Delivery, destinations
from daemon.events.outcomes import Arrival, Rejection, RejectionKind, StoreOutcome, StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance

# One caller's alerts of one kind are told at most once in so many seconds; the next says how many there were.
ALERT_EVERY_S = 60.0
MOST_CALLERS = 10_000

_ALERTS = {
    RejectionKind.UNKNOWN_PEER: messages.NODE_AUTHENTICATION,
    RejectionKind.CALLED_AE_TITLE: messages.NODE_AUTHENTICATION,
    RejectionKind.TLS: messages.NODE_AUTHENTICATION,
    RejectionKind.NOT_PERMITTED: messages.USE_OF_RESTRICTED_FUNCTION,
}


@dataclass
class _Study:
    """What one association brought of one study."""

    classes: Counter[str] = field(default_factory=Counter)
    arrivals: set[Arrival] = field(default_factory=set)

    @property
    def action(self) -> Action:
        if Arrival.NEW in self.arrivals:
            return Action.NEW
        return Action.CHANGED if Arrival.CHANGED in self.arrivals else Action.KNOWN


@dataclass
class _Transfer:
    peer: NetworkNode
    studies: dict[str, _Study] = field(default_factory=lambda: defaultdict(_Study))


class AuditTrail:
    """Thread-safe. Does nothing where the settings name no destination.

    Raises:
        ConfigurationError: `audit.tls` cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        hostname = socket.gethostname()
        self._source = Source(messages.own_node(settings.listener.ae_title, hostname), settings.audit.site)
        self._deliveries = [Delivery(destination) for destination in destinations(settings.audit, hostname)]
        self._lock = threading.Lock()
        self._transfers: dict[str, _Transfer] = {}
        self._alerts: dict[tuple[RejectionKind, str], tuple[float, int]] = {}

    def started(self) -> None:
        self._put(messages.application_activity(self._source, messages.APPLICATION_START))

    def stopped(self) -> None:
        """The last message; returns when it has gone out, or within a limit."""
        self._put(messages.application_activity(self._source, messages.APPLICATION_STOP))
        for delivery in self._deliveries:
            delivery.stop()

    def received(self, incoming: ReceivedInstance, study_uid: str, arrival: Arrival) -> None:
        """An instance was accepted; it is told when its association ends."""
        if not self._deliveries:
            return
        with self._lock:
            transfer = self._transfers.get(incoming.association_id)
            if transfer is None:
                transfer = self._transfers[incoming.association_id] = _Transfer(
                    NetworkNode(incoming.calling_ae, incoming.peer_address)
                )
            study = transfer.studies[study_uid]
            study.classes[incoming.sop_class_uid] += 1
            study.arrivals.add(arrival)

    def association_ended(self, association_id: str, we_asked: bool = False) -> None:
        """Tell what the association brought; `we_asked`: it was ours (C-GET)."""
        with self._lock:
            transfer = self._transfers.pop(association_id, None)
        if transfer is None:
            return
        own = self._source.node
        for study_uid, study in transfer.studies.items():
            self._put(
                messages.instances_transferred(
                    self._source,
                    sender=transfer.peer,
                    receiver=own,
                    requestor=own if we_asked else transfer.peer,
                    study_uid=study_uid,
                    classes=study.classes,
                    action=study.action,
                )
            )

    def sent(self, outcomes: Iterable[tuple[Row, StoreOutcome]], settings: Settings) -> None:
        """Reports that the archive took, or refused for good: one message for each study and outcome."""
        if not self._deliveries:
            return
        groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row, outcome in outcomes:
            if outcome.kind is not StoreOutcomeKind.RETRY:
                failure = outcome.reason if outcome.kind is StoreOutcomeKind.FAILED else ""
                groups[row.study_uid, failure][row.sop_class_uid] += 1
        archive = settings.archive
        by_web = archive.stow_url is not None
        host = (urlsplit(archive.stow_url or "").hostname if by_web else archive.host) or ""
        for (study_uid, failure), classes in groups.items():
            self._put(
                messages.instances_transferred(
                    self._source,
                    sender=self._source.node,
                    receiver=NetworkNode("" if by_web else archive.ae_title, host),
                    requestor=self._source.node,
                    study_uid=study_uid,
                    classes=classes,
                    action=Action.KNOWN,
                    failure=failure,
                )
            )

    def rejected(self, rejection: Rejection) -> None:
        """A Security Alert, unless limits alone were the reason."""
        kind: Code | None = _ALERTS.get(rejection.kind)
        if kind is None or not self._deliveries:
            return
        more = self._more_alerts(rejection)
        if more is None:
            return
        text = f"{rejection.reason}; {more} more like it before" if more else rejection.reason
        caller = NetworkNode(rejection.calling_ae, rejection.address)
        self._put(messages.security_alert(self._source, kind, caller, rejection.called_ae, text))

    def _more_alerts(self, rejection: Rejection) -> int | None:
        """How many like this one were left untold before it; None where this one is, too."""
        key, now = (rejection.kind, rejection.address), time.monotonic()
        with self._lock:
            since, untold = self._alerts.get(key, (-ALERT_EVERY_S, 0))
            if now - since < ALERT_EVERY_S:
                self._alerts[key] = (since, untold + 1)
                return None
            if len(self._alerts) >= MOST_CALLERS:
                self._alerts.clear()
            self._alerts[key] = (now, 0)
            return untold

    @property
    def state(self) -> dict[str, int] | None:
        """Messages delivered, waiting and lost; None where there is no audit trail."""
        if not self._deliveries:
            return None
        return {
            "delivered": sum(delivery.delivered for delivery in self._deliveries),
            "waiting": sum(delivery.waiting for delivery in self._deliveries),
            "lost": sum(delivery.dropped for delivery in self._deliveries),
        }

    def _put(self, message: Message) -> None:
        for delivery in self._deliveries:
            delivery.put(message)
