"""Who called lately, for the status page: AE titles and addresses, what they were given and what they were refused."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from daemon.events.bus import AssociationAccepted, Event, InstanceAnswered
from daemon.events.outcomes import Rejection

MOST = 100  # remembered; strangers are forgotten before those that were let in


@dataclass(frozen=True)
class Caller:
    """One AE title at one address ("" where none was said); `last_seen` in seconds since the epoch."""

    ae_title: str
    address: str
    last_seen: float
    accepted: int = 0
    rejected: int = 0
    last_rejection: str | None = None
    instances: int = 0
    refused: int = 0


class RecentCallers:
    """Thread-safe. `hear` is to be told what happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], Caller] = OrderedDict()  # the one longest silent first

    def hear(self, event: Event) -> None:
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
            if len(self._seen) > MOST:
                strangers = (key for key, one in self._seen.items() if not one.accepted)
                del self._seen[next(strangers, next(iter(self._seen)))]

    def last(self) -> list[Caller]:
        """The one seen last first."""
        with self._lock:
            return list(reversed(self._seen.values()))
