"""Group commit: transitions of several threads in one transaction, so that they wait for the disk once, and together.

Who comes while nothing is under way does what waits, its own and that of others. Who comes meanwhile waits, and the first
of these does the next lot. Where several came last time, a moment is left for more to come: a commit costs as much as what is
recorded by it (PostgreSQL's commit_delay and commit_siblings).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any, TypeVar

from sqlalchemy import Connection

GATHER_S = 0.0015

Result = TypeVar("Result")
Transition = Callable[[Connection], Any]


def outcome(
    transact: Callable[[Callable[[Connection], Result]], Result], transition: Callable[[Connection], Result]
) -> Result | Exception:
    """What a change by this transition returns, or the error that it raises."""
    try:
        return transact(transition)
    except Exception as error:
        return error


class _Waiting:
    def __init__(self, transition: Transition) -> None:
        self.transition = transition
        self.outcome: Any = None  # what it returned, or the error


class _Brought:
    """By one thread, at once."""

    def __init__(self, transitions: Sequence[Transition]) -> None:
        self.waiting = [_Waiting(transition) for transition in transitions]
        self.turn = threading.Event()  # it is done, or its thread is to do what waits
        self.done = False


class GroupCommit:
    """`transact` is a transaction by itself. A transaction that fails with one of `unavailable` fails for all that were in it;
    with any other error, each is done again by itself, so that it fails only for whose it is.
    """

    def __init__(self, transact: Callable[[Transition], Any], unavailable: tuple[type[Exception], ...]) -> None:
        self._transact = transact
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._brought: list[_Brought] = []
        self._under_way = False
        self._came_together = 1  # last time

    def transact(self, transitions: Sequence[Callable[[Connection], Result]]) -> list[Result | Exception]:
        """What each of `transitions` returns, committed, or the error it failed with.

        Each may be called again: it may do nothing that may not be done twice.
        """
        mine = _Brought(transitions)
        with self._lock:
            self._brought.append(mine)
            waits, self._under_way = self._under_way, True
        if waits:
            mine.turn.wait()
        if not mine.done:
            self._do_what_waits()
        return [one.outcome for one in mine.waiting]

    def _do_what_waits(self) -> None:
        brought: list[_Brought] = []
        several: list[_Waiting] = []

        def do(connection: Connection) -> list[Any]:
            take()  # the first time; by now it is this transaction's turn
            return [one.transition(connection) for one in several]

        def take() -> None:
            if not brought:
                with self._lock:
                    brought.extend(self._brought)
                    self._brought.clear()
                several.extend(one for each in brought for one in each.waiting)

        if self._came_together > 1:
            sleep(GATHER_S)
        try:
            results = self._transact(do)
        except Exception as error:
            take()
            if len(several) == 1 or isinstance(error, self._unavailable):
                for one in several:
                    one.outcome = error
            else:
                for one in several:
                    one.outcome = outcome(self._transact, one.transition)
        else:
            for one, result in zip(several, results, strict=True):
                one.outcome = result
        self._came_together = len(brought)
        with self._lock:
            following = self._brought[:1]
            self._under_way = bool(following)
        for each in brought:
            each.done = True
        for each in (*brought, *following):
            each.turn.set()
