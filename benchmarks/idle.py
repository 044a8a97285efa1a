"""What open associations cost that say nothing: CPU time of the whole service beside that without any."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pynetdicom import AE
from pynetdicom.sop_class import Verification

from benchmarks import receivers
from benchmarks.case import Bar, Case, Row, Run
from benchmarks.receivers import MAMMOD

ASSOCIATIONS = 100
SECONDS = 10.0
WHAT = f"{ASSOCIATIONS} idle associations"


def _measure(run: Run) -> Iterator[Row]:
    count, seconds = (2, 0.1) if run.tiny else (ASSOCIATIONS, SECONDS)
    limits = {"max_associations": count + 1, "max_associations_per_address": count + 1, "network_timeout_s": 600}
    with receivers.mammod(run.folder / "mammod", **limits) as ours:

        def percent_of_a_core() -> float:
            before, begun = receivers.cpu_seconds(ours.pid), time.perf_counter()
            time.sleep(seconds)
            return 100 * (receivers.cpu_seconds(ours.pid) - before) / (time.perf_counter() - begun)

        for pair in range(1, run.pairs + 1):
            yield Row("none", MAMMOD, pair, percent_of_a_core(), "% of a core")
            ae = AE(ae_title="IDLE")
            ae.add_requested_context(Verification)
            ae.network_timeout = None
            associations = [ae.associate("127.0.0.1", ours.port, ae_title=ours.aet) for _ in range(count)]
            try:
                assert all(association.is_established for association in associations)
                yield Row(WHAT, MAMMOD, pair, percent_of_a_core(), "% of a core")
                run.say(f"pair {pair} of {run.pairs}")
                assert all(association.is_established for association in associations)
            finally:
                for association in associations:
                    association.abort()


CASE = Case("idle", f"{ASSOCIATIONS} associations that say nothing", (Bar(WHAT, MAMMOD, 5, at_most=True),), _measure)
