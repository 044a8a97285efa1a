"""A thread that does one step again and again, and survives its failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()


class BackgroundLoop:
    """Calls `step` in a thread of its own until it is stopped; `step` returns the seconds until the next one.

    `wake` ends the wait early, also if it comes during a step. A step that fails is logged as the event
    `failure`, by the type of its exception only, and repeated after `retry_s` seconds.
    """

    def __init__(self, name: str, step: Callable[[], float], failure: str, retry_s: float) -> None:
        self._step = step
        self._failure = failure
        self._retry_s = retry_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.beat = time.monotonic()  # when the last step began

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def wake(self) -> None:
        """Let the next step begin now."""
        self._wake.set()

    @property
    def is_stopping(self) -> bool:
        """Return whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let the step under way finish and begin no other; do not wait for it."""
        self._stopping.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before the step: what happens during it leads to another one
            self.beat = time.monotonic()
            try:
                wait_s = self._step()
            except Exception as error:  # a full disk or a locked ledger passes; the loop must not end
                log.error(self._failure, error=type(error).__name__)
                self._stopping.wait(self._retry_s)
                continue
            if self._stopping.is_set():  # `stop` may have come before the clearing
                return
            self._wake.wait(wait_s)
