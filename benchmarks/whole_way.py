"""The whole way through the real service, from sending objects to reports stored in the archive (storescp).

First a backlog: studies of real size over several associations at once. Then the idle service: one lesion,
its image last. Stage times are those of the service's own metrics; what the stages take alone is timed
here, each by itself.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks import receivers
from benchmarks.case import Bar, Case, Row, Run
from benchmarks.receivers import Receiver, cpu_seconds, peak_memory
from benchmarks.studies import FULL, LESIONS, TINY, Study
from tests.support.peers.programs import program, wait_until

SENDERS = 4
GOES = 20
ALONE = 11
LIMIT_S = 280.0
STAGES = ("receive", "decode", "classify", "report", "send")
OURS, PEERS, BOUND, SUM = "mammod", "sender and archive", "stage CPU seconds / cores", "stages alone"


@dataclass(frozen=True)
class Spent:
    """What the service's stages came to since its start: CPU seconds, seconds and passages of each."""

    cpu: Mapping[str, float]
    seconds: Mapping[str, float]
    passages: Mapping[str, float]

    def since(self, earlier: Spent) -> Spent:
        """Return what was spent after `earlier`."""
        return Spent(
            *(
                {stage: now[stage] - then[stage] for stage in STAGES}
                for now, then in zip(self._all, earlier._all, strict=True)
            )
        )

    @property
    def _all(self) -> tuple[Mapping[str, float], ...]:
        return self.cpu, self.seconds, self.passages


def _spent(ours: Receiver) -> Spent:
    with urllib.request.urlopen(f"http://127.0.0.1:{ours.status_port}/metrics", timeout=30) as answer:
        said = answer.read().decode()

    def of(name: str) -> dict[str, float]:
        found = {}
        for line in said.splitlines():
            if line.startswith(f'{name}{{stage="'):
                labels, _, value = line.rpartition(" ")
                found[labels.split('"')[1]] = float(value)
        return {stage: found[stage] for stage in STAGES}

    return Spent(of("mammod_stage_cpu_seconds_total"), of("mammod_stage_seconds_sum"), of("mammod_stage_seconds_count"))


def _send(paths: list[Path], receiver: Receiver) -> float:
    """CPU seconds of dcmsend."""
    before = os.times()
    environment = {**os.environ, "TCP_NODELAY": "1"}
    command = [program("dcmsend"), "-q", "-aec", receiver.aet, "127.0.0.1", str(receiver.port), *map(str, paths)]
    subprocess.run(command, check=True, env=environment, timeout=LIMIT_S)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


class _Waits:
    """Return from the ledger, by job, the seconds from the last object needed to each stored report."""

    def __init__(self, spool: Path) -> None:
        self._ledger = sqlite3.connect(f"file:{spool / 'ledger.sqlite'}?mode=ro", uri=True)
        self._seen = 0

    def states(self) -> dict[str, int]:
        return dict(self._ledger.execute("select state, count(*) from jobs where id > ? group by state", (self._seen,)))

    def wait(self, count: int, limit_s: float) -> list[tuple[float, float]]:
        """Of the next `count` jobs: when each was complete, and when its report was stored."""
        wait_until(lambda: self.states().get("done", 0) == count, f"{count} jobs done", limit_s)
        rows = self._ledger.execute(
            "select jobs.id, complete_at, stored_at from jobs join outbox on job_id = jobs.id where jobs.id > ? order by 1",
            (self._seen,),
        ).fetchall()
        assert len(rows) == count, f"{len(rows)} reports of {count} lesion objects"
        self._seen = rows[-1][0]
        return [(complete, stored) for _, complete, stored in rows]


def _measure(run: Run) -> Iterator[Row]:
    shape = TINY if run.tiny else FULL
    goes, alone = (3, 3) if run.tiny else (GOES, ALONE)
    studies = [Study(run.folder / "sent" / str(number), number, shape) for number in range(2 * SENDERS)]
    with receivers.storescp(run.folder / "archive", "+B") as archive:
        with receivers.mammod(run.folder / "mammod", archive=(archive.aet, archive.port)) as ours:
            yield from _backlog(run, ours, archive, studies)
            idle = list(_idle(run, ours, studies[0], goes))
        by_stage = _alone(run, studies[0], archive, alone)
    yield from idle
    receive = median(row.value for row in idle if row.who == "receive, unreferenced image")
    for stage, seconds in {"receive": receive, **by_stage}.items():
        yield Row("idle: stage alone", stage, 1, seconds, "s")
    yield Row("idle: p95", SUM, 1, receive + sum(by_stage.values()), "s")


def _backlog(run: Run, ours: Receiver, archive: Receiver, studies: list[Study]) -> Iterator[Row]:
    count = 4 if run.tiny else run.studies
    waits = _Waits(ours.spool)
    for number, study in enumerate(studies[:2], 1):  # warm
        study.renew(number)
        _send(sorted(study.folder.iterdir()), ours)
    waits.wait(2 * LESIONS, LIMIT_S)
    ours.clear()
    numbers = iter(range(len(studies) + 1, len(studies) + 1 + count))
    lock = threading.Lock()
    spent, cpu, archive_cpu = _spent(ours), cpu_seconds(ours.pid), cpu_seconds(archive.pid)
    sent_cpu, sent_bytes = [], []
    begun = time.time()

    def sender(mine: list[Study]) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            study = mine[number % 2]
            study.renew(number)
            _send(sorted(study.folder.iterdir()), ours)
            sent_bytes.append(study.size)

    before, machine = os.times(), _machine_cpu()
    with peak_memory(ours.pid, every_s=1) as peak:
        threads = [
            threading.Thread(target=sender, args=([studies[2 * n], studies[2 * n + 1]],)) for n in range(SENDERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        arrived = time.time() - begun
        times = waits.wait(count * LESIONS, LIMIT_S)
    after, machine = os.times(), _machine_cpu() - machine
    own_cpu = after.user + after.system - before.user - before.system
    sent_cpu = after.children_user + after.children_system - before.children_user - before.children_system
    wall = max(stored for _, stored in times) - begun
    latencies = sorted(stored - complete for complete, stored in times)
    spent = _spent(ours).since(spent)
    whole = cpu_seconds(ours.pid) - cpu
    peers = sent_cpu + cpu_seconds(archive.pid) - archive_cpu
    cores = len(os.sched_getaffinity(0))
    staged = sum(spent.cpu.values())
    what = f"backlog of {count} studies"
    run.say(f"{what}, {sum(sent_bytes) / 1e9:.1f} GB: sent in {arrived:.1f} s, all stored in {wall:.1f} s")
    yield Row("backlog: studies", OURS, 1, count, "")
    yield Row("backlog: sent", OURS, 1, sum(sent_bytes) / 1e9, "GB")
    yield Row("backlog: wall", OURS, 1, wall, "s")
    yield Row("backlog: wall", BOUND, 1, staged / cores, "s")
    yield Row("backlog: wall", f"{BOUND}, with {PEERS}", 1, (staged + peers) / cores, "s")
    yield Row("backlog: rate", OURS, 1, count * LESIONS / wall, "lesions/s")
    yield Row("backlog: p50", OURS, 1, median(latencies), "s")
    yield Row("backlog: p95", OURS, 1, _p95(latencies), "s")
    yield Row("backlog: peak memory", OURS, 1, peak[0] / 1e6, "MB")
    for stage in STAGES:
        yield Row("backlog: CPU", stage, 1, spent.cpu[stage], "s")
    yield Row("backlog: CPU", "the service beside its stages", 1, whole - staged, "s")
    yield Row("backlog: CPU", PEERS, 1, peers, "s")
    yield Row("backlog: CPU", "this benchmark", 1, own_cpu, "s")
    yield Row("backlog: CPU", "everything else on the machine", 1, machine - whole - peers - own_cpu, "s")
    for stage in STAGES:
        yield Row(
            "backlog: seconds of one passage", stage, 1, spent.seconds[stage] / max(spent.passages[stage], 1), "s"
        )


def _idle(run: Run, ours: Receiver, study: Study, goes: int) -> Iterator[Row]:
    """Time one lesion after another, SEG first, raw image last: from the image's first byte to the report."""
    image, lesion = study.folder / "0-raw.dcm", study.lesion_objects[0]
    waits = _Waits(ours.spool)
    waits._seen = waits._ledger.execute("select max(id) from jobs").fetchone()[0]
    for go in range(goes + 2):
        study.renew(500_000 + go)
        before = _spent(ours)
        if go < goes:
            _send([lesion], ours)
            middle = _spent(ours)
            _send([image], ours)
            ((complete, stored),) = waits.wait(1, 60)
            spent = _spent(ours).since(middle)
            whole = stored - complete + spent.seconds["receive"]
            yield Row("idle: one lesion", OURS, go + 1, whole, "s")
            for stage in STAGES:
                yield Row("idle: stage within", stage, go + 1, spent.seconds[stage], "s")
        else:
            _send([image], ours)
            yield Row(
                "idle: stage within",
                "receive, unreferenced image",
                go,
                _spent(ours).since(before).seconds["receive"],
                "s",
            )
        ours.clear()
    run.say(f"idle: {goes} lesions, one at a time")


def _alone(run: Run, study: Study, archive: Receiver, times: int) -> dict[str, float]:
    """Medians of what each stage takes by itself in this process, in seconds."""
    from datetime import UTC, datetime

    from pydicom import dcmread

    from config.settings import Archive as ArchiveSettings
    from config.settings import Settings
    from daemon.archive.client import Archive
    from daemon.archive.store_status import OutgoingInstance
    from daemon.events.outcomes import StoreOutcomeKind
    from daemon.jobs.job_runner import read_part10
    from daemon.lesions.reader import read_lesions
    from daemon.reports.case import Case as ReportCase
    from daemon.reports.case import Edition, Result
    from daemon.reports.registry import KINDS
    from daemon.storage.spool import Spool
    from daemon.workers.bundle_source import algorithm, default_bundle_path
    from daemon.workers.classifier_pool import process_environments
    from daemon.workers.classifier_process import open_engine
    from daemon.workers.decoder_pool import keep_freed_memory
    from model.bundle import load_bundle
    from model.prediction import Prediction
    from model.roi_extraction import Cut, cut_rois

    keep_freed_memory()  # as the decoding processes do
    bundle = load_bundle(default_bundle_path())
    os.environ.update(process_environments(1)[0])
    engine = open_engine(str(bundle.path), bundle.digest, "auto", 8)
    image_path, lesion_path = study.folder / "0-raw.dcm", study.lesion_objects[0]
    header = dcmread(image_path, stop_before_pixels=True)
    chosen = Settings().lesions
    made: dict[str, object] = {}

    def decode() -> None:
        image = dcmread(image_path)
        made["reading"] = reading = read_lesions(
            dcmread(lesion_path), {str(header.SOPInstanceUID): header}, {}, chosen.not_lesions, chosen.max_per_object
        )
        cuts = [Cut(lesion.frame, lesion.outline) for lesion in reading.lesions]
        made["rois"] = cut_rois(image, cuts, bundle.manifest.crop, bundle.manifest.normalisation)

    def classify() -> None:
        made["probability"] = float(engine.predict(made["rois"][0].pixels[None])[0])  # type: ignore[index]

    spool = Spool(Path(tempfile.mkdtemp(dir=run.folder)), 0)
    source = dcmread(lesion_path, stop_before_pixels=True)

    def report() -> None:
        (lesion,), (roi,) = made["reading"].lesions, made["rois"]  # type: ignore[attr-defined,misc]
        prediction = Prediction(made["probability"], False, engine.name, bundle.digest, None)  # type: ignore[arg-type]
        case = ReportCase(
            source, {lesion.image_uid: header}, (Result(lesion, roi, prediction),), algorithm(bundle), (), {}
        )
        edition = Edition("tid1500", str(source.SOPInstanceUID), "digest", bundle.digest, datetime.now(UTC))
        (written,) = KINDS["tid1500"](case, edition)
        placed = spool.write_report(str(written.SOPInstanceUID), read_part10(written))
        made["outgoing"] = OutgoingInstance(
            spool.absolute(placed.path),
            written.SOPClassUID,
            written.SOPInstanceUID,
            written.file_meta.TransferSyntaxUID,
        )

    calls = Archive(ArchiveSettings(host="127.0.0.1", port=archive.port, ae_title=archive.aet), "BENCH", spool.incoming)

    def send() -> None:  # until the archive's answer, which is when the report counts as stored
        made["outcomes"] = calls.store([made["outgoing"]])  # type: ignore[list-item]
        assert next(made["outcomes"]).kind is StoreOutcomeKind.STORED  # type: ignore[call-overload]

    took: dict[str, list[float]] = {"decode": [], "classify": [], "report": [], "send": []}
    for _ in range(times):
        for name, work in zip(took, (decode, classify, report, send), strict=True):
            took[name].append(_timed(work))
        assert list(made["outcomes"]) == []  # type: ignore[call-overload]
    return {name: median(seconds) for name, seconds in took.items()}


def _timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _machine_cpu() -> float:
    """CPU seconds that all of the machine has been busy."""
    user, nice, system, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _with_p95(run: Run) -> Iterator[Row]:
    ones = []
    for row in _measure(run):
        if row.what == "idle: one lesion":
            ones.append(row.value)
        yield row
    yield Row("idle: p95", OURS, 1, _p95(sorted(ones)), "s")


CASE = Case(
    "whole-way",
    f"studies of four views and {LESIONS} lesions through the service to an archive; then one lesion at a time",
    (
        Bar("backlog: wall", OURS, 1.25, BOUND, at_most=True),
        Bar("idle: p95", OURS, 2, SUM, at_most=True),
    ),
    _with_p95,
)
