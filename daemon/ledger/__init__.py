"""The ledger: the one place where state lives. Tables in `schema`, transitions in `instances`, `jobs` and `outbox`.

Every transition is a function that takes the connection of one transaction (`Ledger.write()`), so that what belongs
together is committed together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from daemon.errors import LedgerError, LedgerTooNew

MIGRATIONS = Path(__file__).parent / "migrations"
SQLITE_BUSY_TIMEOUT_MS = 30_000


class Ledger:
    """An open ledger at the newest schema version. `write()` is one transaction, `read()` a consistent view.

    Raises:
        LedgerError: the URL cannot be opened.
        LedgerTooNew: the schema is one that this program does not know.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
        except (
            SQLAlchemyError,
            ImportError,
            ValueError,
        ) as error:  # whose messages may quote the URL, password and all
            raise LedgerError(
                f"ledger.url cannot be used ({type(error).__name__}); expected such as postgresql+psycopg://user@host/name, "
                "with its driver installed"
            ) from error
        is_sqlite = self._engine.dialect.name == "sqlite"
        # SQLite has one writer: threads queue here instead of polling its busy handler.
        self._writer: Any = threading.Lock() if is_sqlite else nullcontext()
        try:
            _migrate(self._engine)
        except SQLAlchemyError as error:
            raise LedgerError(f"ledger {make_url(url).render_as_string()} cannot be opened: {_cause(error)}") from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back by an exception."""
        with self._writer, self._engine.execution_options(write=True).begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    if parsed.database and parsed.database != ":memory:":
        _make_private(Path(parsed.database))
    # The pool holds as many connections as there are threads that may ask at once.
    engine = create_engine(
        parsed, pool_size=20, max_overflow=1000, connect_args={"check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below, not the driver's late one
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a committed row survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")

    return engine


def _make_private(file: Path) -> None:
    """0600 in a directory made 0700; SQLite gives its -wal and -shm files the permissions of the database."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(OSError):  # SQLite says better what is wrong
        file.touch(mode=0o600)
        for path in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
            if path.exists():
                path.chmod(0o600)


@dataclass(frozen=True)
class Schema:
    """Revisions of a ledger's schema: the one it has (None: no tables yet), and the newest that this program knows."""

    present: str | None
    newest: str


def look(url: str) -> Schema:
    """What opening the ledger at `url` would begin from; nothing is migrated, and no SQLite file is made.

    Raises:
        LedgerError: it cannot be opened.
        LedgerTooNew: see `Ledger`.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return Schema(None, _scripts().get_current_head() or "")
    try:
        engine = _engine(url)
        try:
            with engine.connect() as connection:
                return _schema(connection, _scripts())
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise LedgerError(f"ledger cannot be looked at ({type(error).__name__}); is ledger.url right?") from error


def _migrate(engine: Engine) -> None:
    with engine.execution_options(write=True).begin() as connection:
        config = _config()
        _schema(connection, ScriptDirectory.from_config(config))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _schema(connection: Connection, scripts: ScriptDirectory) -> Schema:
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in {script.revision for script in scripts.walk_revisions()}:
        raise LedgerTooNew(
            f"the ledger's schema is {present!r}, which this version of mammod does not know: it was written by a newer "
            "version; install that version again, or point [ledger] url at another ledger"
        )
    return Schema(present, scripts.get_current_head() or "")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error)
