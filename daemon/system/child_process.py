"""A child process at the other end of a pipe: asked with a time limit, its exit seen at once."""

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


EXIT_LIMIT_S = 10.0  # for a process that closed its pipe to exit


class ChildError(Exception):
    """The process did not answer."""


class AnswerTimeout(ChildError):
    """The process did not answer within the limit and was killed."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"its process gave no answer within {limit_s:g} s")


class ChildExited(ChildError):
    """The process exited before it answered; `exitcode` is its status, or minus the signal that ended it."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"its process ended ({exitcode})")
        self.is_killed = exitcode == -signal.SIGKILL


class ChildProcess:
    """A process that runs `target(pipe, *arguments)` from its construction on.

    Only the child holds its end of the pipe, so its exit is seen at once, even in the middle of an answer. An
    executor of `concurrent.futures` holds the writing end too, and would wait for the rest of that answer.

    The child ignores SIGTERM (see `initialise_child`): a polite end is a message of its own protocol, or the
    end of the pipe; `kill` sends SIGKILL.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        self.pipe, child_end = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(child_end, *arguments), name=name, daemon=True)
        self._process.start()
        child_end.close()
        # When the program ends, multiprocessing would send SIGTERM, which the child ignores, and wait.
        atexit.register(self.kill)

    @property
    def pid(self) -> int | None:
        """Return the process id, or None after the exit."""
        return self._process.pid if self._process.is_alive() else None

    @property
    def exitcode(self) -> int | None:
        """Return the exit status, or minus the signal that ended the process; None before `join`."""
        return self._process.exitcode

    def ask(self, limit_s: float, *request: Any) -> Any:
        """Send the request, if there is one, and return the answer; kill the process if it takes too long.

        Raises:
            AnswerTimeout: there was no answer within `limit_s` seconds.
            ChildExited: the process exited.
        """
        is_late = threading.Event()

        def expire() -> None:
            is_late.set()
            self.kill()

        timer = threading.Timer(limit_s, expire)
        timer.daemon = True
        timer.start()
        try:
            for message in request:
                self.pipe.send(message)
            return self.pipe.recv()
        except (EOFError, OSError):
            if is_late.is_set():
                self.join()
                raise AnswerTimeout(limit_s) from None
            self.join(EXIT_LIMIT_S)
            raise ChildExited(self.exitcode) from None
        finally:
            timer.cancel()

    def join(self, limit_s: float | None = None) -> None:
        """Wait for the exit, at most `limit_s` seconds if given."""
        self._process.join(limit_s)

    def kill(self) -> None:
        """Kill the process, from any thread; the pipe stays open for the thread that reads from it."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, wait for its exit, and close the pipe."""
        self.kill()
        self.join()
        self.pipe.close()
        atexit.unregister(self.kill)


def initialise_child(name: str) -> None:
    """Set up the calling child process: its name, its signals, and its exit together with the service.

    `name` is what `ps` and `top` show, at most 15 characters. SIGINT and SIGTERM are ignored: a terminal or a
    control group sends them to all processes, and the service drains its children itself. The child exits
    with the service even if SIGKILL ends the service while the child is at work.
    """
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
