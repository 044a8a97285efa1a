"""Group commit over a real SQLite ledger: what threads bring at the same time is one transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from daemon.ledger import Ledger, group_commit
from tests.support.peers.programs import wait_until

THREADS = 8


@pytest.fixture
def commits(ledger: Ledger) -> list[None]:
    with ledger.write() as connection:
        connection.execute(text("CREATE TABLE brought (number INTEGER)"))
    seen: list[None] = []
    event.listen(ledger._engine, "commit", lambda connection: seen.append(None))
    return seen


@contextmanager
def all_at_once(ledger: Ledger, transitions: list[Callable[[Connection], int]]) -> Iterator[list[object]]:
    """Bring each transition in a thread of its own while the ledger is written to; return the outcomes."""
    became: list[object] = [None] * len(transitions)

    def bring(index: int) -> None:
        (became[index],) = ledger.transact_together([transitions[index]])

    threads = [threading.Thread(target=bring, args=(index,)) for index in range(len(transitions))]
    with ledger.write():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(ledger._group_commit._batches) == len(transitions), "all of them wait")
    for thread in threads:
        thread.join(30)
    yield became


def insert(number: int) -> Callable[[Connection], int]:
    def transition(connection: Connection) -> int:
        connection.execute(text("INSERT INTO brought VALUES (:number)"), {"number": number})
        return number

    return transition


def numbers(ledger: Ledger) -> list[int]:
    with ledger.read() as connection:
        return list(connection.execute(text("SELECT number FROM brought ORDER BY number")).scalars())


def test_what_waits_is_one_transaction(ledger: Ledger, commits: list[None]) -> None:
    with all_at_once(ledger, [insert(number) for number in range(THREADS)]) as became:
        assert became == list(range(THREADS))
        assert numbers(ledger) == list(range(THREADS))
        assert len(commits) == 2  # theirs, and the one they waited for


def test_an_error_is_its_own_threads_alone(ledger: Ledger, commits: list[None]) -> None:
    def fails(connection: Connection) -> int:
        insert(100)(connection)
        raise ValueError("this one")

    with all_at_once(ledger, [*(insert(number) for number in range(THREADS)), fails]) as became:
        assert became[:THREADS] == list(range(THREADS))
        assert isinstance(became[THREADS], ValueError)
        assert numbers(ledger) == list(range(THREADS))


def test_a_ledger_that_cannot_be_written_refuses_all_at_once(ledger: Ledger, commits: list[None]) -> None:
    """And does not try each of them again: the busy limit would be waited for by one after the other."""
    tried: list[None] = []

    def locked(connection: Connection) -> int:
        tried.append(None)
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    with all_at_once(ledger, [locked] * THREADS) as became:
        assert all(isinstance(error, OperationalError) for error in became)
        assert len(tried) == 1
    assert ledger.transact_together([insert(7)]) == [7]  # and the next is served


def test_one_alone_does_not_wait(ledger: Ledger, commits: list[None]) -> None:
    assert [ledger.transact_together([insert(number)]) for number in range(3)] == [[0], [1], [2]]
    assert numbers(ledger) == [0, 1, 2]
    assert len(commits) == 3


def test_a_moment_is_left_for_more_only_where_several_came(
    ledger: Ledger, commits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []
    monkeypatch.setattr(group_commit, "sleep", left.append)
    ledger.transact_together([insert(0)])
    with all_at_once(ledger, [insert(1), insert(2)]):
        assert left == []
        ledger.transact_together([insert(3)])
        assert left == [group_commit.GATHER_S]
        ledger.transact_together([insert(4)])
        assert left == [group_commit.GATHER_S], "nobody else came"
    assert numbers(ledger) == [0, 1, 2, 3, 4]


def test_what_one_thread_brings_at_once_is_one_transaction_in_its_order(ledger: Ledger, commits: list[None]) -> None:
    assert ledger.transact_together([insert(number) for number in (2, 0, 1)]) == [2, 0, 1]
    assert numbers(ledger) == [0, 1, 2]
    assert len(commits) == 1
