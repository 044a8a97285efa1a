"""A process of ours at the other end of a pipe: asked with a limit of time, its death seen at once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")


class TooLate(Exception):
    """No answer came within the limit; the process was ended."""


class ChildProcess:
    """A process that runs `target(pipe, *arguments)`, from its making on.

    Its end of the pipe is its own alone, so that its death is seen at once, were it in the middle of an answer: an executor
    of `concurrent.futures`, which holds the writing end too, would wait for the rest.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()
        # At the end of the program multiprocessing would ask it to end, which it ignores, and wait.
        atexit.register(self.kill)

    @property
    def pid(self) -> int | None:
        """The process's id while it lives."""
        return self._process.pid if self._process.is_alive() else None

    @property
    def exitcode(self) -> int | None:
        """How it ended, once it was joined: a status, or minus the signal."""
        return self._process.exitcode

    def ask(self, limit_s: float, *request: Any) -> Any:
        """Send what is to be asked, if anything, and wait for an answer; ending the process ends a wait that is too long.

        Raises:
            TooLate: there was none within `limit_s` seconds.
            EOFError, OSError: the process ended.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        overdue = threading.Timer(limit_s, end)
        overdue.daemon = True
        overdue.start()
        try:
            for message in request:
                self.pipe.send(message)
            return self.pipe.recv()
        except (EOFError, OSError):
            if late.is_set():
                raise TooLate from None
            raise
        finally:
            overdue.cancel()

    def join(self, limit_s: float | None = None) -> None:
        self._process.join(limit_s)

    def kill(self) -> None:
        """End it now; from any thread. The pipe is for the thread that asks, which may be reading from it."""
        self._process.kill()

    def end(self) -> None:
        """End it and put it away."""
        self.kill()
        self.join()
        self.pipe.close()
        atexit.unregister(self.kill)


def begin(name: str) -> None:
    """In such a process: it has a name for `ps` and `top` of at most 15 characters, drains through the daemon, and ends with it.

    Be the daemon ended by SIGKILL and this process in the middle of work.
    """
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a terminal or of a control group
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
