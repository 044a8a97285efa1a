"""An open ledger and its transactions.

Every transition is a function that takes the connection of one transaction (`Ledger.transact`), so that what
belongs together is committed together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from daemon.errors import LedgerError
from daemon.ledger.database import SPOOL_LOCK, Schema, is_retryable, migrate, open_engine, schema_of
from daemon.ledger.group_commit import GroupCommit, outcome

# Raised while the database cannot be reached, is locked or full: a passing fault, after which the same may be
# asked again.
UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeout)
# Transactions that PostgreSQL cannot serialize are retried for this long.
MAX_RETRY_S = 20.0

Result = TypeVar("Result")


class Ledger:
    """An open ledger at the newest schema version.

    `transact()` and `write()` run one transaction, `read()` gives a consistent view. `password_file` holds
    the password of a PostgreSQL server, and is read anew for each connection.

    Raises:
        LedgerError: the URL cannot be opened.
        LedgerTooNew: this program does not know the schema.
    """

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        try:
            self._engine = open_engine(url, password_file)
        # Their messages may quote the URL, password and all.
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise LedgerError(
                f"ledger.url cannot be used ({type(error).__name__}); expected such as postgresql+psycopg://user@host/name, "
                'with its driver installed: mammod\'s extra "postgresql"'
            ) from error
        try:
            migrate(self._engine)
        except SQLAlchemyError as error:
            raise LedgerError(f"ledger {make_url(url).render_as_string()} cannot be opened: {_cause(error)}") from error
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        # SQLite has one writer: threads queue here instead of polling its busy handler.
        self._writer: Any = threading.Lock() if self._is_sqlite else nullcontext()
        serializable = {} if self._is_sqlite else {"isolation_level": "SERIALIZABLE"}
        snapshot = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._writing = self._engine.execution_options(write=True, **serializable)
        self._reading = self._engine.execution_options(**snapshot)
        self._alone = self._engine.execution_options(write=True)
        self._group_commit = GroupCommit(self.transact, UNAVAILABLE)

    def transact(self, transition: Callable[[Connection], Result]) -> Result:
        """Run `transition` in one transaction and return its result.

        If another node or thread gets in its way, it is called again with a new transaction. It must
        therefore change nothing but the ledger, or only what may be done twice.
        """
        if self._is_sqlite:  # its transactions come one after the other
            with self.write() as connection:
                return transition(connection)
        for attempt in Retrying(
            retry=retry_if_exception(is_retryable),
            wait=wait_random_exponential(multiplier=0.005, max=0.5),
            stop=stop_after_delay(MAX_RETRY_S),
            reraise=True,
        ):
            with attempt, self.write() as connection:
                return transition(connection)
        raise AssertionError("unreachable")

    def transact_together(self, transitions: Sequence[Callable[[Connection], Result]]) -> list[Result | Exception]:
        """Run each of `transitions` like `transact`.

        Returns what each returned, or the error that it would raise. If the database has one writer, they
        share one transaction with the transitions of other threads.
        """
        if self._is_sqlite:
            return self._group_commit.transact(transitions)
        return [outcome(self.transact, transition) for transition in transitions]

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open one transaction, tried once: committed at the end of the block, rolled back if it raises."""
        with self._writer, self._writing.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a consistent, read-only view for the length of the block."""
        with self._reading.connect() as connection:
            yield connection

    @contextmanager
    def alone_with_spool(self) -> Iterator[Connection]:
        """Keep every node from recording a file (see `recording_a_file`) while the block runs.

        A file without a row may be deleted in the block.
        Each statement sees what was committed before it.
        """
        with self._writer, self._alone.begin() as connection:
            if not self._is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SPOOL_LOCK})
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def look(url: str, password_file: Path | None = None) -> Schema:
    """Return the schema that the ledger at `url` has; nothing is migrated, and no SQLite file is made.

    Raises:
        LedgerError: the ledger cannot be opened.
        LedgerTooNew: see `Ledger`.
    """
    try:
        return schema_of(url, password_file)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise LedgerError(f"ledger cannot be opened ({type(error).__name__}); is ledger.url right?") from error


def recording_a_file(connection: Connection) -> None:
    """Keep files of the spool from being deleted until this transaction ends.

    Call it first in a transaction that records a file.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": SPOOL_LOCK})


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error)
