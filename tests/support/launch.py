"""Runs the `mammod` command with a stand-in engine, and where asked kills the process hard at a named step.

MAMMOD_TEST_CRASH is "module:function:before" or ":after" ("Class.method" for a method): SIGKILL the first
time that step is reached. The product has no hook for this; the step is wrapped here. MAMMOD_TEST_HANG
names a file: while it is there, the dispatcher hangs, and is taken for hung after two seconds.
MAMMOD_TEST_CLOCK names a file with the seconds that its wall clock is off (libfaketime breaks Python's own
sleep).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

ENGINE = "tests.support.engine:open_engine"


def main() -> None:
    from daemon.workers.classifier_pool import ClassifierPool

    defaults: dict[str, Any] = ClassifierPool.__init__.__kwdefaults__
    if os.environ.pop("MAMMOD_TEST_ENGINE", "") == "stand-in":
        defaults["factory"] = ENGINE
    if clock := os.environ.pop("MAMMOD_TEST_CLOCK", ""):
        set_clock(Path(clock))
    if hang := os.environ.pop("MAMMOD_TEST_HANG", ""):
        hang_dispatcher(Path(hang))
    crash = os.environ.pop("MAMMOD_TEST_CRASH", "")
    if crash:
        install(crash)
    from daemon.cli.app import main as mammod

    mammod()


def set_clock(file: Path) -> None:
    """The wall clock of this process: of `time.time`, and of `datetime.now` where the service and its
    scheduler ask it.
    """
    import apscheduler.executors.base
    import apscheduler.schedulers.base
    import apscheduler.triggers.date
    import apscheduler.triggers.interval

    import daemon.maintenance.periodic_tasks

    real = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + float(file.read_text())
    for module in (
        apscheduler.executors.base,
        apscheduler.schedulers.base,
        apscheduler.triggers.date,
        apscheduler.triggers.interval,
        daemon.maintenance.periodic_tasks,
    ):
        module.datetime = Shifted  # type: ignore[attr-defined]


def hang_dispatcher(file: Path) -> None:
    import daemon.monitoring.health
    from daemon.jobs.dispatcher import Dispatcher

    daemon.monitoring.health.MAX_SILENCE_S = 2
    claim = Dispatcher._claim

    def wrapped(self: Dispatcher) -> float:
        while file.exists():
            time.sleep(0.05)
        return claim(self)

    Dispatcher._claim = wrapped  # type: ignore[method-assign]


def install(crash: str) -> None:
    module_name, qualified, when = crash.split(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = qualified.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    step = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    sys.argv[0] = "mammod"
    main()
