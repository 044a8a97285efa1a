"""Small objects (SR of 16 kB) over one association from an unmodified sender, without TCP_NODELAY.

Nagle's algorithm there and delayed acknowledgements here cost about 44 ms per object, unless the receiver
acknowledges at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import receivers
from benchmarks.case import Bar, Case, Row, Run, interleaved
from benchmarks.receivers import MAMMOD, Receiver
from benchmarks.senders import Objects, report_of, send

SIZE = 16_000
COUNT = 200
STOCK = "storescp"


def _measure(run: Run) -> Iterator[Row]:
    objects = Objects(run.folder / "sent", report_of(SIZE), 3 if run.tiny else COUNT)

    def timed(receiver: Receiver) -> Callable[[int], float]:
        def objects_per_second(pair: int) -> float:
            objects.renew()
            seconds = send(objects, receiver, no_delay=False)
            receiver.clear()
            return objects.count / seconds

        return objects_per_second

    with (
        receivers.mammod(run.folder / "mammod") as ours,
        receivers.storescp(run.folder / "storescp", no_delay=False) as stock,
    ):
        for receiver in (ours, stock):
            timed(receiver)(0)
        yield from interleaved(run, "rate", "objects/s", {MAMMOD: timed(ours), STOCK: timed(stock)})


CASE = Case(
    "small-objects",
    "SR of 16 kB over one association, sender without TCP_NODELAY, beside storescp as it comes",
    (Bar("rate", MAMMOD, 5, STOCK),),
    _measure,
)
