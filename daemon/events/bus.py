"""Facts that metrics and the status page count: published where they happen, received by subscribers.

A fact carries nothing of a patient and can be pickled. A receiver process sends the facts published there to
the service's process, which publishes them again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from daemon.events.outcomes import Arrival, Rejection, StoreOutcomeKind


@dataclass(frozen=True)
class AssociationAccepted:
    """An association of a peer was accepted."""

    calling_ae: str
    address: str


@dataclass(frozen=True)
class InstanceAnswered:
    """A C-STORE request of a peer was answered with `status`."""

    sop_class_uid: str
    status: int
    calling_ae: str
    address: str


@dataclass(frozen=True)
class InstanceAccepted:
    """An instance of `size` bytes, however it arrived, is durable and recorded."""

    arrival: Arrival
    size: int


class JobOutcome(StrEnum):
    """How one attempt at a job ended."""

    CLASSIFIED = "classified"
    NOTHING = "nothing_to_classify"
    INCOMPLETE = "incomplete"  # it needs more instances, and waits for them
    CHANGED = "input_changed"  # in the meantime: the job runs again
    POSTPONED = "postponed"  # disk full or no worker: not because of the job itself
    FAILED = "failed"  # an internal failure: another attempt follows
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class JobAttempted:
    """One attempt at a job; `seconds` from the last instance to the outbox, if it was classified."""

    outcome: JobOutcome
    lesions: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class BatchClassified:
    """A classifier process classified so many ROIs together."""

    rois: int


class WorkerKind(StrEnum):
    """What a process beside the service's own does."""

    RECEIVER = "receiver"
    DECODER = "decoder"
    CLASSIFIER = "classifier"


@dataclass(frozen=True)
class WorkerRestarted:
    """A process that died, or was killed because it hung, is replaced."""

    worker: WorkerKind


@dataclass(frozen=True)
class ReportSent:
    """One attempt to store a report of this kind in the archive."""

    kind: str
    outcome: StoreOutcomeKind


@dataclass(frozen=True)
class ArchiveAnswered:
    """The archive accepted an association or a connection, whatever it answered then."""


@dataclass(frozen=True)
class ArchiveSilent:
    """The archive could not be reached, rejected the association, or aborted it."""

    reason: str


@dataclass(frozen=True)
class DeletedForRoom:
    """What retention by size deleted from the ledger, and the `bytes` of the files that belong to it."""

    jobs: int = 0
    instances: int = 0
    reports: int = 0
    bytes: int = 0

    def __add__(self, other: DeletedForRoom) -> DeletedForRoom:
        return DeletedForRoom(
            self.jobs + other.jobs,
            self.instances + other.instances,
            self.reports + other.reports,
            self.bytes + other.bytes,
        )


Event = (
    AssociationAccepted
    | Rejection
    | InstanceAnswered
    | InstanceAccepted
    | JobAttempted
    | BatchClassified
    | WorkerRestarted
    | ReportSent
    | ArchiveAnswered
    | ArchiveSilent
    | DeletedForRoom
)

T = TypeVar("T")


class Channel(Generic[T]):
    """From publishers to subscribers, in the publisher's thread. Subscribers must be quick and not raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: tuple[Callable[[T], None], ...] = ()

    def subscribe(self, subscriber: Callable[[T], None]) -> None:
        """Call `subscriber` with every fact from now on."""
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)

    def unsubscribe(self, subscriber: Callable[[T], None]) -> None:
        """Call `subscriber` no more."""
        with self._lock:
            self._subscribers = tuple(other for other in self._subscribers if other != subscriber)

    @contextmanager
    def subscribed(self, subscriber: Callable[[T], None]) -> Iterator[None]:
        """Subscribe until the block ends."""
        self.subscribe(subscriber)
        try:
            yield
        finally:
            self.unsubscribe(subscriber)

    def publish(self, fact: T) -> None:
        """Call every subscriber with `fact`."""
        for subscriber in self._subscribers:
            subscriber(fact)


_channel: Channel[Event] = Channel()
subscribe, unsubscribe, subscribed, publish = (
    _channel.subscribe,
    _channel.unsubscribe,
    _channel.subscribed,
    _channel.publish,
)
