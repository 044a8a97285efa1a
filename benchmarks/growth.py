"""What one more instance costs as ledger and spool grow.

Each size has its own ledger and spool, filled quickly beforehand: rows in large transactions, small files
without sync. The real intake of small instances is timed, one after another, each durable: alternately an
image and a lesion object that references it, and the dispatcher's query for jobs after each. The network is
not included.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Connection, update

from benchmarks.case import Bar, Case, Row, Run, interleaved
from config.settings import Log
from daemon.ledger import Ledger, instances, job_claims, jobs, schema
from daemon.ledger.instances import StoredInstance
from daemon.receiving.intake import Intake
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from daemon.system import log
from tests.support import lesion_objects

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
TINY_SIZES = (10, 20)
MEASURED = 100  # images, and as many lesion objects, of each run
IN_ONE_TRANSACTION = 1_000
WHAT = "cost of one instance"
_BUNDLE = "0" * 64
_IMAGE, _LESIONS = "1", "2"


class _Grown:
    """A spool and a ledger that hold `size` instances, half of them lesion objects whose jobs are done."""

    def __init__(self, folder: Path, size: int) -> None:
        self._spool = Spool(folder / "spool")
        self._ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        self._intake = Intake(self._spool, self._ledger, _BUNDLE, self._look_for_jobs)
        image = lesion_objects.mammogram(64, 48, sop_instance_uid=_uid(_IMAGE, 0))
        region = lesion_objects.MarkedRegion("POLYLINE", [(10, 10), (30, 10), (30, 30), (10, 30), (10, 10)])
        lesions = lesion_objects.measurement_report_of(image, [region], sop_instance_uid=_uid(_LESIONS, 0))
        self._objects = [
            (kind, str(dataset.SOPClassUID), _part_10(dataset))
            for kind, dataset in ((_IMAGE, image), (_LESIONS, lesions))
        ]
        self._count = 0
        while self._count < size // 2:
            with self._ledger.write() as connection:
                for _ in range(min(IN_ONE_TRANSACTION, size // 2 - self._count)):
                    self._count += 1
                    self._put(connection, self._count)
                connection.execute(update(schema.jobs).values(state=schema.JobState.DONE))
        os.sync()

    def _put(self, connection: Connection, number: int) -> None:
        for kind, sop_class_uid, content in self._objects:
            uid, digest = _uid(kind, number), f"{kind}{number:063x}"
            path = f"instances/{number % 256:02x}/{digest}.dcm"
            file = self._spool.absolute(path)
            file.parent.mkdir(exist_ok=True, mode=0o700)
            file.write_bytes(content[:1000])
            instance = StoredInstance(
                sop_instance_uid=uid,
                sop_class_uid=sop_class_uid,
                study_uid=uid,
                series_uid=uid,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                digest=digest,
                size=1000,
                path=path,
                calling_ae="BENCHMARK",
                received_at=time.time(),
            )
            _, instance_id = instances.record(connection, instance)
            if kind == _LESIONS:
                jobs.create(connection, instance_id, uid, [_uid(_IMAGE, number)], _BUNDLE, time.time())

    def _look_for_jobs(self) -> None:
        with self._ledger.read() as connection:
            job_claims.claimable(connection, "benchmark", time.time(), [])

    def cost_ms(self, count: int, _pair: int) -> float:
        """Take `count` images and lesion objects; milliseconds for each instance."""
        spent = 0.0
        for _ in range(count):
            self._count += 1
            for kind, sop_class_uid, content in self._objects:
                path = self._spool.incoming / f"{kind}.part"
                for each in (_IMAGE, _LESIONS):
                    content = content.replace(_uid(each, 0).encode(), _uid(each, self._count).encode())
                path.write_bytes(content)
                incoming = ReceivedInstance(
                    path=path,
                    sop_class_uid=sop_class_uid,
                    sop_instance_uid=_uid(kind, self._count),
                    transfer_syntax_uid=ExplicitVRLittleEndian,
                    calling_ae="BENCHMARK",
                    called_ae="MAMMOD",
                    peer_address="127.0.0.1",
                    association_id="benchmark",
                )
                begun = time.perf_counter()
                self._intake.accept(incoming)
                spent += time.perf_counter() - begun
                path.unlink()
        with self._ledger.write() as connection:
            connection.execute(update(schema.jobs).values(state=schema.JobState.DONE))
        return 1000 * spent / (2 * count)

    def close(self) -> None:
        self._ledger.close()


def _uid(kind: str, number: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.88.{kind}.{1_000_000_000 + number}"  # always as long


def _part_10(dataset: object) -> bytes:
    stream = DicomBytesIO()
    dataset.save_as(stream, enforce_file_format=True)  # type: ignore[attr-defined]
    return bytes(stream.getvalue())


def _measure(run: Run) -> Iterator[Row]:
    grown: dict[str, _Grown] = {}
    with ExitStack() as open_things:
        nobody = open_things.enter_context(Path(os.devnull).open("w"))
        log.configure(Log(format="json"), nobody)  # as in the service
        for size in TINY_SIZES if run.tiny else SIZES:
            run.say(f"filling a ledger with {size:,} instances")
            grown[_at(size)] = open_things.enter_context(closing(_Grown(run.folder / str(size), size)))
        count = 2 if run.tiny else MEASURED
        contenders = {name: partial(one.cost_ms, count) for name, one in grown.items()}
        for cost in contenders.values():
            cost(0)  # the first ones find caches cold
        yield from interleaved(run, WHAT, "ms", contenders)


def _at(size: int) -> str:
    return f"at {size:,}"


CASE = Case(
    "growth",
    "cost of one more instance in a ledger and spool that hold some already",
    (Bar(WHAT, _at(SIZES[-1]), 1.2, _at(SIZES[0]), at_most=True),),
    _measure,
)
