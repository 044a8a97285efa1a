"""Durable ingest of whole images, beside Orthanc (which syncs too) and storescp (which does not).

All use Explicit VR Little Endian and, including the senders, TCP_NODELAY. A sender is a dcmsend process:
its own start and its reading of the files are part of each time, for all receivers alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from pydicom.uid import ExplicitVRLittleEndian

from benchmarks import receivers
from benchmarks.case import Bar, Case, Row, Run, interleaved
from benchmarks.receivers import MAMMOD, ORTHANC, Receiver
from benchmarks.senders import Objects, mammogram, send

IMAGES = {"27 MB": (4096, 3328), "1.7 MB": (1024, 832)}  # rows, columns of 16 bits
# Images of one run: some seconds for the slowest receiver.
COUNTS = {
    ("27 MB", 1): 40, ("27 MB", 4): 60, ("27 MB", 8): 80, ("27 MB", 16): 80,
    ("1.7 MB", 1): 300, ("1.7 MB", 4): 600, ("1.7 MB", 8): 800, ("1.7 MB", 16): 800,
}  # fmt: skip
PLAIN, FORKING = "storescp +B", "storescp +B --fork"
MEMORY = "peak memory of all processes"


def _case(size: str, associations: int, *bars: Bar) -> Case:
    return Case(
        f"ingest-{size.replace(' ', '')}-{associations}",
        f"images of {size} over {associations} association{'s' if associations > 1 else ''}, durably accepted",
        bars,
        lambda run: _measure(run, size, associations),
    )


def _measure(run: Run, size: str, associations: int) -> Iterator[Row]:
    count = 2 * associations if run.tiny else COUNTS[size, associations]
    objects = Objects(run.folder / "sent", mammogram(*((64, 64) if run.tiny else IMAGES[size])), count, associations)
    spent: list[Row] = []

    def timed(receiver: Receiver) -> Callable[[int], float]:
        def images_per_second(pair: int) -> float:
            objects.renew()
            os.sync()  # what the one before left in the cache is not written at this one's cost
            before = receivers.cpu_seconds(receiver.pid)
            seconds = send(objects, receiver)
            cpu = (receivers.cpu_seconds(receiver.pid) - before) / (count * objects.size / 1e9)
            spent.append(Row("CPU time", receiver.name, pair, cpu, "s/GB"))
            syntax = receiver.syntax()
            assert syntax == ExplicitVRLittleEndian, f"{receiver.name} took {syntax}: not the same work for all"
            receiver.clear()
            return count / seconds

        return images_per_second

    with ExitStack() as running:
        ours = running.enter_context(receivers.mammod(run.folder / "mammod"))
        options = ("+B", "--fork") if associations > 1 else ("+B",)
        contenders = [
            ours,
            running.enter_context(receivers.orthanc(run.folder / "orthanc")),
            running.enter_context(receivers.storescp(run.folder / "storescp", *options)),
        ]
        for receiver in contenders:  # none has the memory and the folders to make that one that runs has long had
            objects.renew()
            send(objects, receiver)
            receiver.clear()
        yield from interleaved(run, "rate", "images/s", {receiver.name: timed(receiver) for receiver in contenders})
        yield from spent
        # By itself, as looking at the memory takes time.
        objects.renew()
        with receivers.peak_memory(ours.pid) as peak:
            send(objects, ours)
        yield Row(MEMORY, MAMMOD, 1, peak[0] / 1e9, "GB")


CASES = (
    _case("27 MB", 1, Bar("rate", MAMMOD, 2, ORTHANC), Bar("rate", MAMMOD, 0.6, PLAIN, goal=1.0)),
    _case("27 MB", 4),
    _case(
        "27 MB",
        8,
        Bar("rate", MAMMOD, 2, ORTHANC),
        Bar("rate", MAMMOD, 0.6, FORKING),
        Bar(MEMORY, MAMMOD, 1.0, at_most=True),
    ),
    _case("27 MB", 16),
    _case("1.7 MB", 1, Bar("rate", MAMMOD, 2, ORTHANC), Bar("rate", MAMMOD, 0.45, PLAIN, goal=0.8)),
    _case("1.7 MB", 4),
    _case("1.7 MB", 8, Bar("rate", MAMMOD, 1.3, ORTHANC), Bar("rate", MAMMOD, 0.5, FORKING)),
    _case("1.7 MB", 16),
)
