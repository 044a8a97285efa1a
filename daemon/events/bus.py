"""What happens, as small facts that metrics and the status page count: told where it happens, heard by whoever listens.

A fact carries nothing of a patient, and can be pickled: a process that does part of the service's work hands what it told on
to the service's own process, which tells it there once more.
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
    """An instance of `size` bytes is durable and recorded, by whatever way it came."""

    arrival: Arrival
    size: int


class JobOutcome(StrEnum):
    """What came of one attempt at a job."""

    CLASSIFIED = "classified"
    NOTHING = "nothing_to_classify"
    INCOMPLETE = "incomplete"  # it turned out to need more instances, and waits for them
    CHANGED = "input_changed"  # meanwhile: it is done again
    POSTPONED = "postponed"  # disk full, no worker: nothing of its own was in its way
    FAILED = "failed"  # something of ours failed: another attempt follows
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class JobAttempted:
    """`seconds` from when all of it was here to its reports in the outbox, where it was classified."""

    outcome: JobOutcome
    lesions: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class BatchClassified:
    rois: int


class WorkerKind(StrEnum):
    RECEIVER = "receiver"
    DECODER = "decoder"
    CLASSIFIER = "classifier"


@dataclass(frozen=True)
class WorkerRestarted:
    """A process that died, or was ended because it hung, is replaced."""

    worker: WorkerKind


@dataclass(frozen=True)
class ReportSent:
    """One attempt to store a report of this kind in the archive."""

    kind: str
    outcome: StoreOutcomeKind


@dataclass(frozen=True)
class ArchiveAnswered:
    """It accepted an association or a connection, whatever it said then."""


@dataclass(frozen=True)
class ArchiveSilent:
    """It could not be reached, refused the association, or broke it off."""

    reason: str


@dataclass(frozen=True)
class DeletedForRoom:
    """What retention by size removed from the ledger; `bytes` of the files that go with it."""

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
    """From whoever tells to whoever hears, in the teller's thread. A subscriber must not take long, nor raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: tuple[Callable[[T], None], ...] = ()

    def subscribe(self, subscriber: Callable[[T], None]) -> None:
        with self._lock:
            self._subscribers = (*self._subscribers, subscriber)

    def unsubscribe(self, subscriber: Callable[[T], None]) -> None:
        with self._lock:
            self._subscribers = tuple(other for other in self._subscribers if other != subscriber)

    @contextmanager
    def subscribed(self, subscriber: Callable[[T], None]) -> Iterator[None]:
        """Tell `subscriber` too until the block ends."""
        self.subscribe(subscriber)
        try:
            yield
        finally:
            self.unsubscribe(subscriber)

    def publish(self, fact: T) -> None:
        for subscriber in self._subscribers:
            subscriber(fact)


_channel: Channel[Event] = Channel()
subscribe, unsubscribe, subscribed, publish = (
    _channel.subscribe,
    _channel.unsubscribe,
    _channel.subscribed,
    _channel.publish,
)
