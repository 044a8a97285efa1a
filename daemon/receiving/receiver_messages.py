"""What the service and a receiver send each other over the pipe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from config import settings
from daemon.dimse.pending_connections import Address
from daemon.events.bus import Event
from daemon.events.timings import StageTiming


@dataclass(frozen=True)
class StartParameters:
    """What a receiver is started with: `folder` takes what it receives, peers call `address`."""

    listener: settings.Listener
    log: settings.Log
    spool: Path
    min_free: int
    folder: Path
    address: Address
    takes_commitment: bool


# --- to the receiver ---


@dataclass(frozen=True)
class Serve:
    """Serve this association. The descriptor of its connection follows."""

    association_id: str
    address: Address
    request: bytes


@dataclass(frozen=True)
class Stop:
    """Let associations finish within `limit_s` seconds, then exit."""

    limit_s: float


@dataclass(frozen=True)
class ReconfigureLog:
    """Log by these settings from now on."""

    log: settings.Log


@dataclass(frozen=True)
class Ping:
    """Answer with `Alive`."""


@dataclass(frozen=True)
class Reply:
    """The result of the request with this number, or the error to raise for it."""

    number: int
    result: Any
    error: Exception | None


@dataclass(frozen=True)
class Replies:
    """The replies to one or more requests."""

    replies: tuple[Reply, ...]


# --- from the receiver ---


class Operation(StrEnum):
    """What a receiver asks of the service: methods of `ScpCallbacks`, with `record` in place of `accept`."""

    DECIDE = "decide"
    RECORD = "record"
    COMMITMENT = "commitment"


@dataclass(frozen=True)
class Request:
    """Do this in the service and send a `Reply` with the same number."""

    number: int
    operation: Operation
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Alive:
    """The receiver serves; its first message, and its answer to a ping."""


@dataclass(frozen=True)
class AssociationEnded:
    """An association has ended."""

    association_id: str


@dataclass(frozen=True)
class Facts:
    """Facts that were published in the receiver, to be published in the service again."""

    facts: tuple[Event | StageTiming, ...]


ToReceiver = Serve | Stop | ReconfigureLog | Ping | Replies
ToService = Request | Alive | AssociationEnded | Facts
