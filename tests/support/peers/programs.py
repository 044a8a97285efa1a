"""Find, run and stop the real programs that the tests use as peers (DCMTK, Orthanc, dicom3tools).

A missing program skips the test by name, or fails it where CI=true. Every program runs with TCP_NODELAY=1
in its environment: without it DCMTK (and Orthanc, which is built on it) stalls some 40 ms per object.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

DEBIAN_PACKAGES = {
    "Orthanc": "orthanc",
    "storescp": "dcmtk",
    "dcmqrscp": "dcmtk",
    "storescu": "dcmtk",
    "dcmsend": "dcmtk",
    "dsr2html": "dcmtk",
    "dsrdump": "dcmtk",
    "dcmdump": "dcmtk",
    "dcmp2pgm": "dcmtk",
    "dcmpschk": "dcmtk",
    "dcmj2pnm": "dcmtk",
    "dciodvfy": "dicom3tools",
    "dcentvfy": "dicom3tools",
    "openssl": "openssl",
    "java": "default-jre-headless",
    "nginx": "nginx-light",
    "rsyslogd": "rsyslog rsyslog-openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
}
PIXELMED = Path("/usr/share/java/pixelmed.jar")  # Debian's libpixelmed-java
READY_LIMIT_S = 30.0
RUN_LIMIT_S = 120.0


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, naming what is missing and its Debian package; fail it where CI=true."""
    reason = f"needs {what}: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The full path of `name`, or the test ends here (see `missing`)."""
    # Debian installs Orthanc in /usr/sbin, which an ordinary user's PATH may lack.
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return path or missing(name, DEBIAN_PACKAGES[name])


def free_port() -> int:
    """A TCP port that was free on 127.0.0.1 a moment ago, below those that outgoing connections are given
    meanwhile.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return int(probe.getsockname()[1])


def wait_until(state: Callable[[], object], what: str, limit_s: float = READY_LIMIT_S) -> None:
    """Poll `state` until it is true; AssertionError naming `what` after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while not state():
        assert time.monotonic() < end, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)


def answers_echo(port: int, called_ae: str, calling_ae: str = "TESTS") -> bool:
    """Whether a DICOM node on 127.0.0.1:`port` answers one C-ECHO with success."""
    ae = AE(ae_title=calling_ae)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title=called_ae)
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return "Status" in status and status.Status == 0x0000


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], *, no_delay: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server program until the block ends; the block starts when `ready()` is true. Its output goes
    to `log`.

    Without `no_delay` it runs without TCP_NODELAY in its environment, as it comes.
    """
    environment = _environment() if no_delay else {k: v for k, v in os.environ.items() if k != "TCP_NODELAY"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}"
            return ready()

        wait_until(is_ready, f"{command[0]} answers a C-ECHO")
        yield process
    finally:
        process.kill()  # it holds nothing but a temporary folder, and Orthanc takes 4 s to end politely
        process.wait(10)


def dcmsend(
    files: Iterable[Path],
    host: str,
    port: int,
    aec: str,
    aet: str = "MODALITY",
    options: Iterable[str] = ("+ma", "-nh"),
) -> dict[str, int]:
    """Send `files` by C-STORE; the status of each SOP Instance UID that was answered (the others are absent).

    Proposes what the files need (SEG and 3D SR included).
    """
    return _store("dcmsend", files, host, port, aec, aet, options)


def storescu(
    files: Iterable[Path],
    host: str,
    port: int,
    aec: str,
    aet: str = "MODALITY",
    options: Iterable[str] = ("-R", "+C", "-nh"),
) -> dict[str, int]:
    """Send `files` by C-STORE; the status of each SOP Instance UID that was answered (the others are absent).

    Without -R (only what the files need) storescu proposes neither SEG nor 3D SR. Compressed files want
    their own option, such as -xs for JPEG lossless.
    """
    return _store("storescu", files, host, port, aec, aet, options)


def dciodvfy(path: Path) -> list[str]:
    """The Error lines that dciodvfy prints for a DICOM file; an empty list is the bar."""
    return [line for line in _run([program("dciodvfy"), str(path)]).splitlines() if line.startswith("Error")]


def dcentvfy(paths: Iterable[Path]) -> list[str]:
    """The Error lines of dcentvfy: patient, study, series and equipment attributes that differ where they
    must not.
    """
    said = _run([program("dcentvfy"), *map(str, paths)]).splitlines()
    return [line for line in said if line.startswith("Error")]


def dsrdump(path: Path) -> tuple[str, list[str]]:
    """What dsrdump reads in a structured report, and its lines of error or warning.

    It checks value types and relationships against the IOD. That it knows no templates of CAD SR, and not
    every character set, is not a complaint.
    """
    said = _run([program("dsrdump"), "-Er", "+Pl", str(path)])
    lines = [line for line in said.splitlines() if re.match("[EWF]: ", line)]
    unknown_to_it = re.compile(r"Check for template constraints not yet supported|Specific ?Character ?Set")
    return said, [line for line in lines if not unknown_to_it.search(line)]


def pixelmed(path: Path) -> list[str]:
    """What PixelMed's validator prints: `DicomSRValidator` holds an SR against its templates (PS3.16),
    value sets included.

    Some 4 seconds of CPU. (Its validator for images knows neither presentation states nor Secondary
    Captures.)
    """
    java = program("java")
    if not PIXELMED.exists():
        missing(str(PIXELMED), "libpixelmed-java")
    # Newer Java limits the size of a style sheet, which its rules exceed.
    limits = [f"-Djdk.xml.xpath{limit}=0" for limit in ("TotalOpLimit", "ExprGrpLimit", "ExprOpLimit")]
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true"]
    said = _run([java, *limits, *quick, "-cp", str(PIXELMED), "com.pixelmed.validate.DicomSRValidator", str(path)])
    return [line for line in said.splitlines() if line]


def dsr2html(path: Path) -> str:
    """A structured report as HTML; AssertionError where dsr2html refuses it."""
    completed = subprocess.run(
        [program("dsr2html"), str(path)], capture_output=True, text=True, errors="replace", timeout=RUN_LIMIT_S
    )
    assert completed.returncode == 0, f"dsr2html {path}: {completed.stderr}"
    return completed.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "TCP_NODELAY": "1"}


def _run(command: list[str]) -> str:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        timeout=RUN_LIMIT_S,
    ).stdout


def _store(
    name: str, files: Iterable[Path], host: str, port: int, aec: str, aet: str, options: Iterable[str]
) -> dict[str, int]:
    # The debug output is the one place where both programs name each status with its instance.
    command = [program(name), "-d", *options, "-aet", aet, "-aec", aec, host, str(port), *map(str, files)]
    return parse_store_statuses(_run(command))


_MESSAGE = re.compile(r"Message Type +: C-STORE (RQ|RSP)$(.*?)END DIMSE MESSAGE", re.MULTILINE | re.DOTALL)
_REQUEST = re.compile(r"Message ID +: (\d+).*?Affected SOP Instance UID +: ([\d.]+)", re.DOTALL)
_RESPONSE = re.compile(r"Message ID Being Responded To : (\d+).*?DIMSE Status +: (0x[0-9a-f]{4})", re.DOTALL)


def parse_store_statuses(output: str) -> dict[str, int]:
    """SOP Instance UID -> C-STORE response status, from the debug output of storescu or dcmsend."""
    requested: dict[str, str] = {}
    statuses: dict[str, int] = {}
    for kind, body in _MESSAGE.findall(output):
        if kind == "RQ" and (request := _REQUEST.search(body)):
            requested[request[1]] = request[2]
        elif response := _RESPONSE.search(body):
            statuses[requested[response[1]]] = int(response[2], 16)
    return statuses
