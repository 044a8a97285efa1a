"""Remember recent callers for the status page: AE title, address, and what was accepted or rejected."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from daemon.events.bus import AssociationAccepted, Event, InstanceAnswered
from daemon.events.outcomes import Rejection

MAX_CALLERS = 100  # callers that were never accepted are dropped first


@dataclass(frozen=True)
class Caller:
    """One AE title at one address ("" if unknown); `last_seen` in seconds since the epoch."""

    ae_title: str
    address: str
    last_seen: float
    accepted: int = 0
    rejected: int = 0
    last_rejection: str | None = None
    instances: int = 0
    refused: int = 0


class RecentCallers:
    """Callers by AE title and address, built from events, which `record` takes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], Caller] = OrderedDict()  # least recently seen first

    def record(self, event: Event) -> None:
        """Count an association, a rejection or an answered instance for its caller."""
        if not isinstance(event, AssociationAccepted | Rejection | InstanceAnswered):
            return
        key, now = (event.calling_ae, event.address), time.time()
        with self._lock:
            caller = replace(self._seen.pop(key, Caller(*key, now)), last_seen=now)
            if isinstance(event, AssociationAccepted):
                caller = replace(caller, accepted=caller.accepted + 1)
            elif isinstance(event, Rejection):
                caller = replace(caller, rejected=caller.rejected + 1, last_rejection=event.kind.value)
            elif event.status == 0:
                caller = replace(caller, instances=caller.instances + 1)
            else:
                caller = replace(caller, refused=caller.refused + 1)
            self._seen[key] = caller
            if len(self._seen) > MAX_CALLERS:
                never_accepted = (key for key, caller in self._seen.items() if not caller.accepted)
                del self._seen[next(never_accepted, next(iter(self._seen)))]

    def last(self) -> list[Caller]:
        """Return all callers, most recently seen first."""
        with self._lock:
            return list(reversed(self._seen.values()))
