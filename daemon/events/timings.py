"""How long the stages of the way take, in seconds of the clock and of the CPU: said where the work is done, heard by metrics.

Like a log line, a time is said by whoever does the work and heard by whoever listens in this process; where nobody does, it
costs a microsecond. A process that does work for another one takes its times there as `StageTiming`, which can be pickled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from daemon.events.bus import Channel


class Stage(StrEnum):
    RECEIVE = "receive"  # an instance, from its first byte to our answer
    DECODE = "decode"  # a job's lesions read, its images decoded and cut; the wait for a decoder is part of it
    CLASSIFY = (
        "classify"  # a job's ROIs, from the first handed over to the last answer; the wait for a batch is part of it
    )
    REPORT = "report"  # a job's reports built, and written to the spool
    SEND = "send"  # a report, to the archive's answer; the first of an association with its negotiation


@dataclass(frozen=True)
class StageTiming:
    """One passage of a stage took `seconds` (None: this is about CPU only, of a passage told elsewhere) and `cpu_seconds`.

    CPU is that of every process that worked for it. Where several jobs share the work (a classifier's batch) it comes by itself.
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
    """Tell how long the block takes, whether it succeeds or raises; its CPU is that of this thread."""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        publish(StageTiming(stage, time.monotonic() - began, time.thread_time() - cpu))


@contextmanager
def counted(stage: Stage) -> Iterator[None]:
    """Tell the CPU of this thread in the block, where it succeeds: of a passage that is told elsewhere."""
    cpu = time.thread_time()
    yield
    used(stage, time.thread_time() - cpu)


def used(stage: Stage, cpu_seconds: float) -> None:
    """CPU that other threads or processes spent on a stage."""
    publish(StageTiming(stage, None, cpu_seconds))
