"""How long the stages take, in wall-clock and CPU seconds, published where the work is done.

Without a subscriber in this process a time costs a microsecond. A process that works for another one sends
its times there as `StageTiming`, which can be pickled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from daemon.events.bus import Channel


class Stage(StrEnum):
    """A stage on the way from a received instance to a stored report."""

    RECEIVE = "receive"  # an instance, from its first byte to our answer
    DECODE = "decode"  # a job's lesions read, its images decoded and cut, with the wait for a decoder
    CLASSIFY = "classify"  # a job's ROIs, from the first one queued to the last answer, with the wait for a batch
    REPORT = "report"  # a job's reports built, and written to the spool
    SEND = "send"  # a report, to the archive's answer; the first of an association with its negotiation


@dataclass(frozen=True)
class StageTiming:
    """One passage through a stage took `seconds` and `cpu_seconds`.

    `seconds` is None for CPU time of a passage whose duration is published elsewhere. CPU time counts every
    process that worked for the passage; the CPU time of shared work (a classifier's batch) is published on
    its own.
    """

    stage: Stage
    seconds: float | None
    cpu_seconds: float


_channel: Channel[StageTiming] = Channel()
subscribe, unsubscribe, subscribed, publish = (
    _channel.subscribe,
    _channel.unsubscribe,
    _channel.subscribed,
    _channel.publish,
)


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Publish how long the block takes, whether it succeeds or raises; CPU is that of this thread."""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        publish(StageTiming(stage, time.monotonic() - began, time.thread_time() - cpu))


@contextmanager
def counted(stage: Stage) -> Iterator[None]:
    """Publish the CPU of this thread in the block if it succeeds; its duration is published elsewhere."""
    cpu = time.thread_time()
    yield
    used(stage, time.thread_time() - cpu)


def used(stage: Stage, cpu_seconds: float) -> None:
    """Publish CPU time that other threads or processes spent on a stage."""
    publish(StageTiming(stage, None, cpu_seconds))
