"""How long the stages of the way take, in seconds of the clock and of the CPU: said where the work is done, heard by metrics.

Like a log line, a time is said by whoever does the work and heard by whoever listens in this process; where nobody does, it
costs a microsecond. A process that does work for another one takes its times there as `Took`, which can be pickled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    RECEIVE = "receive"  # an instance, from its first byte to our answer
    DECODE = "decode"  # a job's lesions read, its images decoded and cut; the wait for a decoder is part of it
    CLASSIFY = (
        "classify"  # a job's ROIs, from the first handed over to the last answer; the wait for a batch is part of it
    )
    REPORT = "report"  # a job's reports built, and written to the spool
    SEND = "send"  # a report, to the archive's answer; the first of an association with its negotiation


@dataclass(frozen=True)
class Took:
    """One passage of a stage took `seconds` (None: this is about CPU only, of a passage told elsewhere) and `cpu_seconds`.

    CPU is that of every process that worked for it. Where several jobs share the work (a classifier's batch) it comes by itself.
    """

    stage: Stage
    seconds: float | None
    cpu_seconds: float


Hearer = Callable[[Took], None]

_lock = threading.Lock()
_hearers: tuple[Hearer, ...] = ()


@contextmanager
def heard_by(hearer: Hearer) -> Iterator[None]:
    """Tell `hearer`, from any thread, of every passage until the block ends. It must not take long, nor raise."""
    add(hearer)
    try:
        yield
    finally:
        remove(hearer)


def add(hearer: Hearer) -> None:
    global _hearers
    with _lock:
        _hearers = (*_hearers, hearer)


def remove(hearer: Hearer) -> None:
    global _hearers
    with _lock:
        _hearers = tuple(other for other in _hearers if other is not hearer)


def tell(took: Took) -> None:
    for hearer in _hearers:
        hearer(took)


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Tell how long the block takes, whether it succeeds or raises; its CPU is that of this thread."""
    began, cpu = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        tell(Took(stage, time.monotonic() - began, time.thread_time() - cpu))


def used(stage: Stage, cpu_seconds: float) -> None:
    """CPU that other threads or processes spent on a stage."""
    tell(Took(stage, None, cpu_seconds))
