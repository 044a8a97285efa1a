"""Processes with mammod's modules already imported: forked from one server per test run.

A service is five processes, and each of them imports for two seconds or more. `install` makes
`ChildProcess` fork too, in the tests' own process and in the services that `start_forked` starts. A process
is given what spawn would give it: the environment, umask, folder and output of whoever starts it.
`tests.support.launch` started as a program is the real thing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from daemon.system import child_process

PRELOADED = (
    "daemon.cli.app",
    "daemon.service",
    "daemon.checks.run",
    "daemon.maintenance.consistency_check",
    "daemon.receiving.receiver_process",
    "daemon.workers.classifier_pool",
    "daemon.workers.decoder_pool",
    "tests.support.engine",
    "tests.support.launch",
)


class _Descriptor:
    """A file descriptor of whoever starts the process, which gets a copy of it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (DupFd(self.number),)


def _received(copy: Any) -> int:
    return int(copy.detach())


class _Process(ForkServerProcess):
    def __init__(self, target: Callable[..., None], args: tuple[Any, ...] = (), **choices: Any) -> None:
        surroundings = (dict(os.environ), Path.cwd(), _umask(), _Descriptor(1), _Descriptor(2))
        super().__init__(target=_run, args=(surroundings, target, args), **choices)


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]


CONTEXT = _Context()


def install() -> None:
    """Let `ChildProcess` fork from this process's server, which is started with the first of them."""
    child_process.SPAWN = CONTEXT  # type: ignore[assignment]
    if multiprocessing.parent_process() is None:
        CONTEXT.set_forkserver_preload([*PRELOADED, __name__])


def is_installed() -> bool:
    return child_process.SPAWN is CONTEXT


def _run(surroundings: tuple[dict[str, str], Path, int, int, int], target: Callable[..., None], args: Any) -> None:
    environment, folder, umask, *outputs = surroundings
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    _take_outputs(outputs)
    # Python's own looks at a process that this one did not start, and then starts a second server.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    install()
    target(*args)


def _take_outputs(copies: list[int]) -> None:
    for number, copy in enumerate(copies, start=1):
        os.dup2(copy, number)
        os.close(copy)


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)


class ForkedProgram:
    """What `subprocess.Popen` is for a program: the process of a function that ends as a program does."""

    def __init__(
        self,
        program: Callable[[], None],
        arguments: list[str],
        environment: Mapping[str, str],
        output: IO[bytes],
        errors: IO[bytes] | None = None,
    ) -> None:
        outputs = [_Descriptor(file.fileno()) for file in (output, errors or output)]
        self._process = CONTEXT.Process(_as_program, (program, arguments, dict(environment), outputs))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(
    program: Callable[[], None], *arguments: object, environment: Mapping[str, str], limit_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` is for a program, with its output as text."""
    words = ["mammod", *map(str, arguments)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        forked = ForkedProgram(program, words, environment, output, errors)
        try:
            status = forked.wait(limit_s)
        finally:
            forked.kill()
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, status, *said)


def _as_program(
    program: Callable[[], None], arguments: list[str], environment: dict[str, str], outputs: list[int]
) -> None:
    """Run it with the interpreter's own end: wait for threads, then run what atexit registered."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = arguments
    _take_outputs(outputs)
    status = 0
    try:
        program()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
