"""A run under SIGKILL: objects are sent as a PACS would, processes are killed at random moments, and all
must end well.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from daemon.cli.app import main as mammod
from tests.support.cases import Case, make_case
from tests.support.fork_server import run_forked
from tests.support.peers.archives import Orthanc
from tests.support.peers.programs import wait_until
from tests.support.persistent_sender import PersistentSender
from tests.support.services import Service

# Kinds of processes, with the names that the service gives them (proc(5), comm).
VICTIMS = {"service": "", "classifier": "mammod-classify", "decoder": "mammod-decoder", "receiver": "mammod-receiver"}
LONGEST_WAIT_BEFORE_KILL_S = 2.0


def kill_run(
    service: Service,
    archive: Orthanc,
    folder: Path,
    objects: int,
    kills: int,
    seed: int,
    left: Callable[[], float],
) -> dict[str, Any]:
    """Send `objects` (an image and a SEG in turns), kill each kind of process `kills` / 4 times; the figures.

    Between two kills goes a share of the objects, and each kill falls at a random moment after it.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    cases = [make_case(folder / "cases", number) for number in range(1, objects // 2 + 1)]
    chance.shuffle(cases)
    # Each image and its lesion object near each other, so that there is work between any two kills.
    files = [path for case in cases for path in chance.sample(case.files, 2)]
    victims = [list(VICTIMS)[number % len(VICTIMS)] for number in range(kills)]
    chance.shuffle(victims)
    service.environment |= {"MAMMOD_TEST_BATCH_S": "0.05"}
    service.forked = False  # so that its processes are its children
    service.start()
    sender = PersistentSender(service.host, service.port, service.aet)
    try:
        for number, victim in enumerate(victims):
            for path in files[number * len(files) // kills : (number + 1) * len(files) // kills]:
                sender.send(path)
            time.sleep(chance.uniform(0, LONGEST_WAIT_BEFORE_KILL_S))
            _kill(service, victim)
        expected = {str(dataset.SOPInstanceUID) for case in cases for dataset in (case.image, case.segmentation)}
        wait_until(lambda: set(sender.accepted) == expected, "every object accepted", left())
        wait_until(lambda: _all_done(service), "every job done", left())
    except AssertionError:
        print(_states(service))
        raise
    finally:
        sender.stop()
    figures = _check(service, archive, cases, sender)
    return {
        "objects": objects,
        "kills": dict(Counter(victims)),
        **figures,
        "seconds": round(time.monotonic() - began, 1),
    }


def _all_done(service: Service) -> bool:
    time.sleep(0.5)  # opening the ledger for a look costs more than the look
    return all(job.state == "done" for job in service.jobs())


def _kill(service: Service, victim: str) -> None:
    assert service.process is not None
    if victim == "service":
        children = _children(service.process.pid)
        service.kill()
        # A process that was just being started sees that its parent is gone only after all its imports.
        wait_until(lambda: not any(map(_runs, children)), "the killed service's processes gone", 120)
        service.start()
        return
    found: list[int] = []

    def there() -> bool:
        assert service.process is not None
        found[:] = [pid for pid in _children(service.process.pid) if _name(pid) == VICTIMS[victim]]
        return bool(found)

    wait_until(there, f"a {victim} process to kill", 180)
    os.kill(found[0], signal.SIGKILL)


def _check(service: Service, archive: Orthanc, cases: list[Case], sender: PersistentSender) -> dict[str, Any]:
    """Nothing lost, nothing twice, everything consistent; the figures."""
    rows = {row.sop_instance_uid: row for row in service.instances()}
    assert set(sender.accepted) <= set(rows), "an accepted object is lost"
    segmentations = {str(case.segmentation.SOPInstanceUID) for case in cases}
    jobs = service.jobs()
    assert Counter(job.source_uid for job in jobs) == Counter(segmentations), "one job for each lesion object"
    reports = archive.instances()
    named: Counter[str] = Counter()
    for uid in reports:
        named.update(_named(dcmread(io.BytesIO(archive.instance_file(uid)))) & segmentations)
    assert named == Counter(segmentations), "exactly one report for each lesion object in the archive"
    assert len(reports) == len(cases)
    assert service.stop() == 0
    deep = check_deep(service)
    assert deep.returncode == 0, deep.stdout
    return {
        "accepted": len(sender.accepted),
        "lost": len(set(sender.accepted) - set(rows)),
        "answers to C-STORE": {("none" if s is None else f"{s:04X}"): n for s, n in sender.statuses.items()},
        "accepted more than once": sum(row.times_received > 1 for row in rows.values()),
        "reports in the archive": len(reports),
        "lesion objects with exactly one report": sum(count == 1 for count in named.values()),
        "most attempts of a job": max(job.attempts for job in jobs),
        "check --deep": deep.stdout.strip().splitlines()[-1],
    }


def check_deep(service: Service) -> subprocess.CompletedProcess[str]:
    """`mammod check --deep` over the service's settings."""
    arguments = ("check", "--deep", "--config", service.settings)
    return run_forked(mammod, *arguments, environment=os.environ, limit_s=300)


def _named(report: Dataset) -> set[str]:
    """Every SOP Instance UID that a report refers to, at any depth."""
    uids: set[str] = set()
    for element in report.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            uids.add(str(element.value))
    return uids


def _states(service: Service) -> str:
    jobs = Counter((job.state, job.reason) for job in service.jobs())
    return json.dumps([[*key, number] for key, number in jobs.items()], indent=1)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if task.name != str(pid)
            for child in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _runs(pid: int) -> bool:
    return bool(_command(pid))  # a zombie has none
