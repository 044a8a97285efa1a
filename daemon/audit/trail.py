"""The audit trail of the service, in messages of DICOM PS3.15 A.5.

It reports start and stop, instances transferred in and out (one message for each study of an association),
and callers that were rejected. `messages` builds the messages, `transport` delivers them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from config.settings import Settings
from daemon.audit import messages
from daemon.audit.messages import Action, Code, Message, NetworkNode, Source
from daemon.audit.transport import Delivery, destinations
from daemon.events.outcomes import Arrival, Rejection, RejectionKind, StoreOutcome, StoreOutcomeKind
from daemon.ledger.records import OutboxItem
from daemon.storage.received_instance import ReceivedInstance

# One caller's alerts of one kind are sent at most once in this time; the next one says how many were held
# back.
ALERT_INTERVAL_S = 60.0
MAX_CALLERS = 10_000

_ALERTS = {
    RejectionKind.UNKNOWN_PEER: messages.NODE_AUTHENTICATION,
    RejectionKind.CALLED_AE_TITLE: messages.NODE_AUTHENTICATION,
    RejectionKind.TLS: messages.NODE_AUTHENTICATION,
    RejectionKind.NOT_PERMITTED: messages.USE_OF_RESTRICTED_FUNCTION,
}


@dataclass
class _Study:
    """The instances of one study that one association brought."""

    classes: Counter[str] = field(default_factory=Counter)
    arrivals: set[Arrival] = field(default_factory=set)

    @property
    def action(self) -> Action:
        if Arrival.NEW in self.arrivals:
            return Action.NEW
        return Action.CHANGED if Arrival.CHANGED in self.arrivals else Action.KNOWN


@dataclass
class _Transfer:
    """What one association has brought so far."""

    peer: NetworkNode
    studies: dict[str, _Study] = field(default_factory=lambda: defaultdict(_Study))


class AuditTrail:
    """Sends audit messages to every destination of the settings; does nothing if there is none. Thread-safe.

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
        """Report that the service started."""
        self._put(messages.application_activity(self._source, messages.APPLICATION_START))

    def stopped(self) -> None:
        """Report that the service stops, as the last message.

        Returns when it was delivered, or after a time limit.
        """
        self._put(messages.application_activity(self._source, messages.APPLICATION_STOP))
        for delivery in self._deliveries:
            delivery.stop()

    def received(self, incoming: ReceivedInstance, study_uid: str, arrival: Arrival) -> None:
        """Count an accepted instance, which is reported when its association ends."""
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

    def association_ended(self, association_id: str, is_ours: bool = False) -> None:
        """Report what the association brought; `is_ours`: we requested it (C-GET)."""
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
                    requestor=own if is_ours else transfer.peer,
                    study_uid=study_uid,
                    classes=study.classes,
                    action=study.action,
                )
            )

    def sent(self, outcomes: Iterable[tuple[OutboxItem, StoreOutcome]], settings: Settings) -> None:
        """Report what the archive stored or refused for good: one message for each study and outcome."""
        if not self._deliveries:
            return
        groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for item, outcome in outcomes:
            if outcome.kind is not StoreOutcomeKind.RETRY:
                failure = outcome.reason if outcome.kind is StoreOutcomeKind.FAILED else ""
                groups[item.study_uid, failure][item.sop_class_uid] += 1
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
        """Send a Security Alert, unless the caller was rejected because of limits only."""
        kind: Code | None = _ALERTS.get(rejection.kind)
        if kind is None or not self._deliveries:
            return
        more = self._more_alerts(rejection)
        if more is None:
            return
        text = f"{rejection.reason}; {more} more like it before" if more else rejection.reason
        caller = NetworkNode(rejection.calling_ae, rejection.address)
        self._put(messages.security_alert(self._source, kind, caller=caller, called_ae=rejection.called_ae, text=text))

    def _more_alerts(self, rejection: Rejection) -> int | None:
        """Return how many alerts like this one were held back before it.

        Returns None if this one is held back, too.
        """
        key, now = (rejection.kind, rejection.address), time.monotonic()
        with self._lock:
            since, held_back = self._alerts.get(key, (-ALERT_INTERVAL_S, 0))
            if now - since < ALERT_INTERVAL_S:
                self._alerts[key] = (since, held_back + 1)
                return None
            if len(self._alerts) >= MAX_CALLERS:
                self._alerts.clear()
            self._alerts[key] = (now, 0)
            return held_back

    @property
    def state(self) -> dict[str, int] | None:
        """Messages delivered, waiting and lost; None if there is no audit trail."""
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
