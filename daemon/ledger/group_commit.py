"""Group commit: transitions of several threads in one transaction, which waits for the disk once.

A thread that comes while no transaction runs commits everything that waits, its own transitions and those of
other threads. A thread that comes meanwhile waits, and the first of these commits the next group. If several
threads came last time, the committing one waits a moment for more, since a transaction costs as much for one
as for many (PostgreSQL's commit_delay and commit_siblings).
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
    """Return what `transact` returns for this transition, or the error that it raises."""
    try:
        return transact(transition)
    except Exception as error:
        return error


class _Waiting:
    """One transition that waits for its transaction."""

    def __init__(self, transition: Transition) -> None:
        self.transition = transition
        self.outcome: Any = None  # what it returned, or the error


class _Batch:
    """The transitions that one thread brought at once."""

    def __init__(self, transitions: Sequence[Transition]) -> None:
        self.waiting = [_Waiting(transition) for transition in transitions]
        self.turn = threading.Event()  # set when it is done, or when its thread is to commit the next group
        self.done = False


class GroupCommit:
    """Commits transitions of several threads together; `transact` runs one transaction.

    If a transaction fails with one of `unavailable`, all of its transitions fail. With any other error, each
    transition is repeated in a transaction of its own, so that only the faulty one fails.
    """

    def __init__(self, transact: Callable[[Transition], Any], unavailable: tuple[type[Exception], ...]) -> None:
        self._transact = transact
        self._unavailable = unavailable
        self._lock = threading.Lock()
        self._batches: list[_Batch] = []
        self._is_running = False
        self._last_batches = 1  # how many the last group held

    def transact(self, transitions: Sequence[Callable[[Connection], Result]]) -> list[Result | Exception]:
        """Return what each of `transitions` returned, committed, or the error it failed with.

        Each may be called more than once: it must do nothing that may not be done twice.
        """
        mine = _Batch(transitions)
        with self._lock:
            self._batches.append(mine)
            waits, self._is_running = self._is_running, True
        if waits:
            mine.turn.wait()
        if not mine.done:
            self._commit_waiting()
        return [one.outcome for one in mine.waiting]

    def _commit_waiting(self) -> None:
        batches: list[_Batch] = []
        group: list[_Waiting] = []

        def run_all(connection: Connection) -> list[Any]:
            collect()  # at the first call: the transaction has begun, and more may have come until now
            return [one.transition(connection) for one in group]

        def collect() -> None:
            if not batches:
                with self._lock:
                    batches.extend(self._batches)
                    self._batches.clear()
                group.extend(one for batch in batches for one in batch.waiting)

        if self._last_batches > 1:
            sleep(GATHER_S)
        try:
            results = self._transact(run_all)
        except Exception as error:
            collect()
            if len(group) == 1 or isinstance(error, self._unavailable):
                for one in group:
                    one.outcome = error
            else:
                for one in group:
                    one.outcome = outcome(self._transact, one.transition)
        else:
            for one, result in zip(group, results, strict=True):
                one.outcome = result
        self._last_batches = len(batches)
        with self._lock:
            following = self._batches[:1]
            self._is_running = bool(following)
        for batch in batches:
            batch.done = True
        for batch in (*batches, *following):
            batch.turn.set()
