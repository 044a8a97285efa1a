"""Check the machine: GPUs and driver, clock, limit of open files, packages that the settings need."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

import config
from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.ledger import Ledger
from daemon.ledger.schema import instances

NVIDIA = "0x10de"  # PCI vendor
DISPLAY = "0x03"  # PCI class, first byte: display controller
STA_UNSYNC = 0x0040  # adjtimex(2)
MAX_CLOCK_OFFSET_S = 60
SPARE_FILES = 200  # for the spool, the ledger, child processes and logs


def machine_findings(settings: Settings) -> Iterator[Finding]:
    """Check packages, GPUs, clock, open files and image decoders."""
    yield from _extras(settings)
    yield from gpu_findings(Path("/"))
    yield from _clock()
    yield from _open_files(settings)
    yield from _decoders()


def gpu_findings(root: Path) -> Iterator[Finding]:
    """Check the GPUs as the classifier will find them; `root` is / except in tests."""
    devices = sorted((root / "dev").glob("nvidia[0-9]*"))
    cards = [
        device
        for device in (root / "sys/bus/pci/devices").glob("*")
        if _text(device / "vendor") == NVIDIA and _text(device / "class").startswith(DISPLAY)
    ]
    driver = _text(root / "proc/driver/nvidia/version").partition("\n")[0]
    if "CUDA_VISIBLE_DEVICES" in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] in ("", "-1"):
        yield Finding("gpu", True, "CUDA_VISIBLE_DEVICES hides every GPU; the classifier runs on the CPU")
    elif devices and driver:
        yield Finding("gpu", True, f"{len(devices)} by NVIDIA, one classifier process each; {driver}")
        yield from _cuda()
    elif devices:
        yield Finding(
            "gpu",
            False,
            f"{devices[0].name} exists but its driver is not loaded: classifier processes would fail on it; "
            "install NVIDIA's driver (nvidia-smi must list the GPU), or set CUDA_VISIBLE_DEVICES=-1 to use the CPU",
        )
    elif cards:
        yield Finding(
            "gpu",
            True,
            f"{len(cards)} by NVIDIA without a working driver: the classifier runs on the CPU; install "
            "NVIDIA's driver (nvidia-smi must list the GPU; in a container, pass it through)",
            warning=True,
        )
    else:
        yield Finding("gpu", True, f"none; the classifier runs on the CPU ({len(os.sched_getaffinity(0))} cores)")


def _cuda() -> Iterator[Finding]:
    if importlib.util.find_spec("nvidia") is None:
        yield Finding(
            "gpu",
            True,
            "TensorFlow's CUDA libraries are not installed, so the classifier runs on the CPU; in mammod's environment: "
            'pip install "tensorflow[and-cuda]"',
            warning=True,
        )


def _extras(settings: Settings) -> Iterator[Finding]:
    """Check for packages that a setting needs and only an extra installs."""
    url = make_url(settings.ledger_url)
    wanted = [
        ("ledger.url", "postgresql" in url.drivername, "psycopg", "postgresql"),
        ("model.engine", str(settings.model.engine) == "openvino", "openvino", "openvino"),
        ("spool.url", settings.spool.url is not None, "s3fs", "s3"),
        ("workers.backend", str(settings.workers.backend) == "ray", "ray", "ray"),
    ]
    for setting, is_needed, package, extra in wanted:
        if is_needed and importlib.util.find_spec(package) is None:
            yield Finding(
                setting,
                False,
                f"needs the Python package {package}, which is not installed; in mammod's environment: "
                f"pip install 'mammod[{extra}]', or change {setting}",
            )


def _clock() -> Iterator[Finding]:
    now = time.time()
    built = Path(config.__file__).stat().st_mtime
    if now < built - MAX_CLOCK_OFFSET_S:
        yield Finding(
            "clock",
            False,
            f"it shows {_date(now)}, but this program was installed on {_date(built)}; set the clock, preferably by NTP",
        )
    elif _is_unsynchronised():
        yield Finding(
            "clock",
            True,
            f"it shows {_date(now)} and is not synchronised (no NTP); reports carry its time: set up chrony or "
            "systemd-timesyncd, here or on the host of this container",
            warning=True,
        )
    else:
        yield Finding("clock", True, f"{_date(now)}, synchronised by NTP")


def newest_is_ahead(ledger: Ledger) -> Finding | None:
    """Return a finding if the newest instance in the ledger is from the future: the clock is or was wrong."""
    with ledger.read() as connection:
        newest = connection.execute(select(func.max(instances.c.received_at))).scalar_one()
    if newest is None or newest <= time.time() + MAX_CLOCK_OFFSET_S:
        return None
    return Finding(
        "clock",
        False,
        f"it shows {_date(time.time())}, but the newest instance arrived on {_date(newest)}; set the clock, preferably by NTP",
    )


def _is_unsynchronised() -> bool:
    """Return whether the kernel reports an unsynchronised clock (adjtimex(2)); False if unknown."""
    timex = (ctypes.c_int * 64)()  # struct timex, 208 bytes: modes, three longs of offsets and errors, then status
    try:
        if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
            return False
    except (OSError, AttributeError):
        return False
    return bool(timex[10] & STA_UNSYNC)  # `int status` at byte 40 of the 64-bit struct


def _open_files(settings: Settings) -> Iterator[Finding]:
    wanted = settings.listener.max_connections + 2 * settings.listener.max_associations + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:
        yield Finding(
            "open files",
            True,
            f"the limit is {soft} (hard limit {hard}), but {wanted} may be needed if every connection is used; raise it by "
            "ulimit -n or LimitNOFILE= in the unit, or lower listener.max_connections",
            warning=True,
        )


def _decoders() -> Iterator[Finding]:
    for syntax in (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless):
        available = get_decoder(syntax).is_available
        yield Finding(
            "decoder",
            available,
            syntax.name if available else f"{syntax.name}: no decoder is installed; reinstall mammod's dependencies",
        )


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
