"""One child process that is kept available: started with a limit, pinged, restarted with back-off, ended.

Decoders and classifiers are restarted when the next request comes (`ready`); receivers at once
(`keep_running`).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

import structlog

from daemon.events import bus
from daemon.events.bus import WorkerKind, WorkerRestarted
from daemon.system.backoff import Backoff
from daemon.system.child_process import ChildExited, ChildProcess

START_LIMIT_S = 300.0  # for a new process to load its modules, on a busy machine
NO_BACKOFF = Backoff(0.0, 0.0)

log = structlog.get_logger()


@dataclass(frozen=True)
class PingRule:
    """When a silent process is sent `message`, and how long it may take to show that it lives."""

    message: Any
    after_s: float
    limit_s: float


class SupervisedProcess:
    """A child process that runs `target(pipe, *arguments)` and is replaced after it has exited.

    `arguments` may be changed for the next start. The first message from the child says that it is ready. A
    `send` fails after `send_limit_s` seconds if that is given. `start`, `ready`, `messages` and `close` are
    for one thread at a time; `send` and `kill` are thread-safe.
    """

    def __init__(
        self,
        name: str,
        kind: WorkerKind,
        target: Callable[..., None],
        *arguments: Any,
        start_limit_s: float = START_LIMIT_S,
        send_limit_s: int | None = None,
        backoff: Backoff = NO_BACKOFF,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._kind = kind
        self._target = target
        self._start_limit_s = start_limit_s
        self._send_limit_s = send_limit_s
        self._backoff = backoff
        self._sending = threading.Lock()
        self._child: ChildProcess | None = None
        self._first_message: Any = None
        self._is_ready = False
        self._failures = 0
        self._failed_at = 0.0

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if there is no live process."""
        child = self._child
        return None if child is None else child.pid

    @property
    def is_dead(self) -> bool:
        """Return whether the process was started and has exited."""
        return self._child is not None and self._child.pid is None

    @property
    def pause_left_s(self) -> float:
        """Return the seconds until the next start is due; 0.0 after a success or a pause."""
        if not self._failures:
            return 0.0
        return max(0.0, self._failed_at + self._backoff.pause_s(self._failures - 1) - time.monotonic())

    def start(self) -> ChildProcess:
        """Start the process if there is none and return it; do not wait until it is ready.

        Raises:
            OSError: the system has no memory or no more processes.
        """
        if self._child is None:
            self._is_ready = False
            child = ChildProcess(self.name, self._target, *self.arguments)
            with self._sending:
                self._child = child  # first, so that `close` finds it whatever happens
                if self._send_limit_s is not None:
                    _limit_sending(child.pipe, self._send_limit_s)
        return self._child

    def ready(self) -> Any:
        """Have a process that is ready, started if need be, and return its first message.

        Raises:
            ChildError: it exited, or was not ready within the start limit.
            OSError: see `start`.
        """
        child = self.start()
        if not self._is_ready:
            self._first_message = child.ask(self._start_limit_s)
            self._is_ready = True
        return self._first_message

    def ask(self, limit_s: float, *request: Any) -> Any:
        """Send the request and return the answer; kill the process if it takes too long.

        Raises:
            ChildError: the process exited, or gave no answer within `limit_s` seconds.
        """
        child = self._child
        if child is None:
            raise ChildExited(None)
        return child.ask(limit_s, *request)

    def send(self, message: Any, connection: socket.socket | None = None) -> None:
        """Send a message, followed by the descriptor of a connection if one is given.

        Raises:
            OSError: there is no process, or it takes nothing. Then it is killed, as half a message may have
                gone.
        """
        with self._sending:
            child = self._child
            if child is None:
                raise BrokenPipeError
            try:
                child.pipe.send(message)
                if connection is not None:
                    send_handle(child.pipe, connection.fileno(), child.pid or 0)
            except OSError:
                child.kill()
                raise

    def note_started(self) -> None:
        """Reset the back-off."""
        self._failures = 0

    def note_failure(self) -> None:
        """Let the next pause begin now, longer than the one before."""
        self._failures += 1
        self._failed_at = time.monotonic()

    def replace(self) -> None:
        """Put away a process that exited or hung, and publish that another one takes its place."""
        bus.publish(WorkerRestarted(self._kind))
        self.close()

    def messages(self, ping: PingRule) -> Iterator[Any]:
        """Yield the messages of the process until it exits; kill it if it hangs.

        A process that has been silent for `ping.after_s` seconds is pinged. If it then sends nothing for
        `ping.limit_s` seconds, it hangs.
        """
        child = self.start()
        poll = select.poll()
        poll.register(child.pipe, select.POLLIN)
        with suppress(EOFError, OSError):
            while self._wait_for_message(child, poll, ping):
                message = child.pipe.recv()
                self._is_ready = True
                yield message

    def _wait_for_message(self, child: ChildProcess, poll: select.poll, ping: PingRule) -> bool:
        if self._is_ready:
            if poll.poll(ping.after_s * 1000):
                return True
            self.send(ping.message)
        if poll.poll((ping.limit_s if self._is_ready else self._start_limit_s) * 1000):
            return True
        log.error("process hangs, killing it", process=self.name)
        child.kill()
        return False

    def keep_running(self, serve: Callable[[], int | None], stopping: threading.Event) -> None:
        """Call `serve`, which starts the process and returns its exit code, until `stopping` is set.

        There is a pause before each restart. It begins anew after a run that was longer than the longest
        pause.
        """
        while not stopping.is_set():
            started = time.monotonic()
            try:
                reason: object = serve()
            except OSError as error:  # no memory, no more processes
                reason = type(error).__name__
            except Exception as error:
                log.exception("process cannot be served", process=self.name)
                reason = type(error).__name__
            if stopping.is_set():
                return
            self.replace()
            log.error("process exited, restarting", process=self.name, exit=reason)
            if time.monotonic() - started > self._backoff.max_s:
                self.note_started()
            self.note_failure()
            stopping.wait(self.pause_left_s)

    def kill(self) -> None:
        """Kill the process, from any thread; the thread that reads from it then sees its exit."""
        if (child := self._child) is not None:
            child.kill()

    def stop(self, farewell: Any, limit_s: float) -> None:
        """Send `farewell`, give the idle process `limit_s` seconds to exit, and put it away."""
        if (child := self._child) is None:
            return
        with suppress(OSError):  # it is gone already
            self.send(farewell)
            child.join(limit_s)
        self.close()

    def close(self) -> int | None:
        """Kill the process, if there is one, release what belongs to it, and return its exit code."""
        with self._sending:
            child, self._child = self._child, None
        if child is None:
            return None
        child.close()
        return child.exitcode


def _limit_sending(pipe: Connection, limit_s: int) -> None:
    """Limit the time of every send on the pipe, so that a frozen process does not hold up its senders."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:  # the pipe's own socket stays open
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", limit_s, 0))
