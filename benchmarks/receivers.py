"""The measured receivers as real programs on loopback: `mammod serve`, Orthanc, DCMTK's storescp."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config.settings import ENVIRONMENT_PREFIX
from tests.support.peers.archives import running_orthanc, running_storescp
from tests.support.peers.programs import free_port, wait_until
from tests.support.services import write_settings

MAMMOD, ORTHANC = "mammod", "Orthanc"
START_LIMIT_S = 120.0
STOP_LIMIT_S = 30.0
SAMPLE_S = 0.05  # between two looks at memory
_ROOT = Path(__file__).resolve().parents[1]
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Receiver:
    """A running receiver; `clear` deletes what it received, `syntax` returns how it stored an instance."""

    name: str
    aet: str
    port: int
    pid: int
    clear: Callable[[], None]
    syntax: Callable[[], str]
    spool: Path = Path()  # of mammod
    status_port: int = 0


@contextmanager
def mammod(folder: Path, *, archive: tuple[str, int] | None = None, **listener: object) -> Iterator[Receiver]:
    """Run the whole service with the default bundle; `listener` adds to that section.

    `archive` is (AE title, port) of where its reports go; without one there is nobody.
    """
    folder.mkdir(parents=True)
    port, status_port, spool = free_port(), free_port(), folder / "spool"
    archive_aet, archive_port = archive or ("NOBODY", free_port())
    write_settings(
        folder / "mammod.toml",
        {
            "listener": {"host": "127.0.0.1", "port": port, **listener},
            "archive": {"host": "127.0.0.1", "port": archive_port, "ae_title": archive_aet},
            "spool": {"directory": str(spool), "min_free": "1 MB"},
            "status": {"port": status_port},
        },
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    log = folder / "mammod.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "serve", "--config", str(folder / "mammod.toml"), "--allow-untrained"],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:

        def ready() -> bool:
            said = log.read_text(errors="replace")
            assert process.poll() is None, f"mammod ended with {process.returncode}:\n{said[-3000:]}"
            return "ready" in said.splitlines()

        wait_until(ready, "mammod's ready line", START_LIMIT_S)
        wait_until(lambda: _rests(process.pid), "its processes have loaded their modules", START_LIMIT_S)
        instances = spool / "instances"
        yield Receiver(
            MAMMOD,
            "MAMMOD",
            port,
            process.pid,
            lambda: _empty(instances, folder / "removed"),
            lambda: _stored_as(instances.rglob("*.dcm")),
            spool,
            status_port,
        )
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT_S)


@contextmanager
def orthanc(folder: Path) -> Iterator[Receiver]:
    """Orthanc as Debian has it, which syncs what it stores."""
    before = set(_children(os.getpid()))
    with running_orthanc(folder, options={"StableAge": 60}) as peer:

        def clear() -> None:
            _free(folder / "storage", folder / "removed")
            for patient in json.loads(peer.rest("/patients")):
                peer.rest(f"/patients/{patient}", "DELETE")

        def syntax() -> str:
            first = json.loads(peer.rest("/instances?limit=1&since=0"))[0]
            return peer.rest(f"/instances/{first}/metadata/TransferSyntax").decode()

        (pid,) = set(_children(os.getpid())) - before
        yield Receiver(ORTHANC, peer.aet, peer.dicom_port, pid, clear, syntax)


@contextmanager
def storescp(folder: Path, *options: str, no_delay: bool = True) -> Iterator[Receiver]:
    """DCMTK's storescp with these options; without `no_delay` as it comes."""
    before = set(_children(os.getpid()))
    with running_storescp(folder, options=options, no_delay=no_delay) as peer:
        (pid,) = set(_children(os.getpid())) - before
        name = " ".join(("storescp", *options))
        yield Receiver(
            name,
            peer.aet,
            peer.dicom_port,
            pid,
            lambda: _empty(peer.folder, folder / "removed"),
            lambda: _stored_as(peer.folder.iterdir()),
        )


def _empty(folder: Path, removed: Path) -> None:
    """Folders stay: a receiver that has been running for a day has them."""
    _free(folder, removed)
    for entry in folder.rglob("*"):
        if entry.is_file():
            entry.unlink()


def _free(folder: Path, removed: Path) -> None:
    """Free the space of the instances below `folder`; keep their inodes in `removed` for a minute.

    For each new file, ext4 searches and skips the inodes freed within the last minutes
    (`recently_deleted`): 7 % of the cost of receiving small images, which a receiver that keeps its
    instances does not pay.
    """
    removed.mkdir(exist_ok=True)
    for entry in folder.rglob("*"):
        if entry.is_file() and not entry.name.startswith("index"):  # Orthanc's database
            os.link(entry, removed / str(entry.stat().st_ino))
            os.truncate(entry, 0)


def _stored_as(files: Iterator[Path]) -> str:
    from pydicom import dcmread

    return str(dcmread(next(files), stop_before_pixels=True).file_meta.TransferSyntaxUID)


# --- cost of a process and its children ---------------------------------------------------------------


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    return [pid, *(descendant for child in _children(pid) for descendant in tree(child))]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, including those that have exited."""
    ticks = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime: proc(5), from field 3
    return ticks / _TICK


def _rests(pid: int) -> bool:
    """Whether it does next to nothing for half a second."""
    before = cpu_seconds(pid)
    time.sleep(0.5)
    return cpu_seconds(pid) - before <= 0.02


def memory_bytes(pid: int) -> int:
    """Proportional set size of the process and all that descend from it: what they share counts once."""
    kilobytes = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes * 1024


@contextmanager
def peak_memory(pid: int, every_s: float = SAMPLE_S) -> Iterator[list[int]]:
    """Sample the memory of a process tree until the block ends; the list then holds the peak, in bytes.

    A look at some GB takes the kernel 0.02 s, in which the process that is looked at may have to wait.
    """
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(every_s):
            peak[0] = max(peak[0], memory_bytes(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
