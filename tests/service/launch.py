"""Runs the `mammod` command with a stand-in engine, and where asked kills the process hard at a named step.

MAMMOD_TEST_CRASH is "module:function:before" or ":after" ("Class.method" for a method): SIGKILL the first time that step is
reached. The product has no hook for this; the step is wrapped here.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

ENGINE = "tests.service.engine:open_engine"


def main() -> None:
    from daemon.classifier import Classifier

    defaults: dict[str, Any] = Classifier.__init__.__kwdefaults__
    if os.environ.pop("MAMMOD_TEST_ENGINE", "") == "stand-in":
        defaults["factory"] = ENGINE
    crash = os.environ.pop("MAMMOD_TEST_CRASH", "")
    if crash:
        install(crash)
    from daemon.cli import main as mammod

    mammod()


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
