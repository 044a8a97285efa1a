"""What threads of an association wait on: queues, timers and file descriptors that wake them.

pynetdicom 3.0 polls a thousand times a second, and its timers follow the wall clock: here threads sleep until
there is something to do, and timers follow the monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom.timer import Timer


class WakingQueue(queue.Queue[Any]):
    """A queue that calls `wake` when an item was put into it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, then wake the consumer."""
        super().put(item, block, timeout)
        self._wake()


class MonotonicTimer(Timer):
    """pynetdicom's timer, by the monotonic clock."""

    _start_time: float | None
    _end_time: float | None

    def start(self) -> None:
        """Start the timer, or start it again."""
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        """Stop the timer; `remaining` no longer changes."""
        self._end_time = time.monotonic()

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._start_time is not None and self._end_time is None

    @property
    def remaining(self) -> float:
        """Seconds until it expires, negative once expired; 1 without a timeout."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        return float(self.timeout - ((self._end_time or time.monotonic()) - self._start_time))


class Wakeup:
    """An event that a thread waits for together with a socket, and that other threads set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        """Wake the thread that waits, or the next that will."""
        with self._lock:
            if self._descriptor is not None:
                os.eventfd_write(self._descriptor, 1)

    def wait(self, connection: socket.socket | None, limit_s: float | None) -> None:
        """Wait until it is set, `connection` can be read, or the limit passes; clear it."""
        poll = select.poll()
        if self._descriptor is not None:
            poll.register(self._descriptor, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        poll.poll(None if limit_s is None else max(limit_s, 0) * 1000 + 1)
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._descriptor is not None:
                os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Close the file descriptor; later calls do nothing."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
