"""Group commit: transitions of several threads in one transaction, so that they wait for the disk once, and together.

Who comes while nothing is under way does what waits, its own and that of others. Who comes meanwhile waits, and the first
of these does the next lot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

Result = TypeVar("Result")
Transition = Callable[[Connection], Any]


class _Waiting:
    def __init__(self, transition: Transition) -> None:
        self.transition = transition
        self.turn = threading.Event()  # it is done, or its thread is to do what waits
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None


class Together:
    """`change` is a transaction by itself. A transaction that fails with one of `unavailable` fails for all that were in it;
    with any other error, each is done again by itself, so that it fails only for whose it is.
    """

    def __init__(self, change: Callable[[Transition], Any], unavailable: tuple[type[Exception], ...]) -> None:
        self._change = change
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._under_way = False

    def change(self, transition: Callable[[Connection], Result]) -> Result:
        """What `transition` returns, committed. It may be called again: it may do nothing that may not be done twice."""
        mine = _Waiting(transition)
        with self._lock:
            self._waiting.append(mine)
            waits, self._under_way = self._under_way, True
        if waits:
            mine.turn.wait()
        if not mine.done:
            self._do_what_waits()
        if mine.error is not None:
            raise mine.error
        result: Result = mine.result
        return result

    def _do_what_waits(self) -> None:
        several: list[_Waiting] = []

        def do(connection: Connection) -> list[Any]:
            if not several:  # the first time; by now it is this transaction's turn
                several.extend(self._take())
            return [one.transition(connection) for one in several]

        try:
            results = self._change(do)
        except Exception as error:
            several = several or self._take()
            if len(several) == 1 or isinstance(error, self._unavailable):
                for one in several:
                    one.error = error
            else:
                for one in several:
                    self._do_alone(one)
        else:
            for one, result in zip(several, results, strict=True):
                one.result = result
        with self._lock:
            following = self._waiting[:1]
            self._under_way = bool(following)
        for one in several:
            one.done = True
        for one in (*several, *following):
            one.turn.set()

    def _take(self) -> list[_Waiting]:
        with self._lock:
            several, self._waiting = self._waiting, []
        return several

    def _do_alone(self, one: _Waiting) -> None:
        try:
            one.result = self._change(one.transition)
        except Exception as error:
            one.error = error
