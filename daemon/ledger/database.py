"""How the ledger's database is opened: SQLite on one machine, PostgreSQL if several nodes share it.

Every writing transaction sees the ledger as if no other ran beside it. SQLite has one writer. PostgreSQL runs
at SERIALIZABLE: it refuses what it cannot serialize, and `Ledger.transact` retries that transaction.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from daemon.errors import LedgerError, LedgerTooNew

MIGRATIONS = Path(__file__).parent / "migrations"
SQLITE_BUSY_TIMEOUT_MS = 30_000

# PostgreSQL: one node opens no more connections than both together. The server's default limit is 100 in all.
POOL_SIZE, POOL_OVERFLOW = 10, 10
# Parameters of libpq, unless the URL gives them: they detect a server that vanished without closing its
# connections.
CONNECTION = {
    "application_name": "mammod",
    "connect_timeout": 10,  # seconds, as the next two
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
# A node that is frozen in the middle of a transaction blocks others for no longer than this.
IDLE_IN_TRANSACTION_S = 15
STATEMENT_S = 60

# Advisory locks (PostgreSQL): arbitrary numbers that no other program locks in this database.
MIGRATION_LOCK = 0x6D616D6D01
SPOOL_LOCK = 0x6D616D6D02

# PostgreSQL's errors after which a transaction is to be retried: serialization failure, deadlock, and a
# unique value that another transaction inserted at the same time.
RETRYABLE = ("40001", "40P01", "23505")


def open_engine(url: str, password_file: Path | None = None) -> Engine:
    """Return the engine of the database at `url`; SQLite's file is made if it is missing."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgresql(parsed, password_file)


def is_retryable(error: BaseException) -> bool:
    """Return whether a transaction that failed with `error` may succeed when it is retried."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in RETRYABLE


def _sqlite(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        _make_private(Path(url.database))
    # The pool holds as many connections as there are threads that may use it at once.
    engine = create_engine(
        url, pool_size=20, max_overflow=1000, connect_args={"check_same_thread": False}, hide_parameters=True
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


def _postgresql(url: URL, password_file: Path | None) -> Engine:
    engine = create_engine(
        url,
        pool_pre_ping=True,  # reconnects to a server that was restarted
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        connect_args={name: value for name, value in CONNECTION.items() if name not in url.query},
        hide_parameters=True,
    )
    if password_file is not None:

        @event.listens_for(engine, "do_connect")
        def _password(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["password"] = read_password(password_file)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_S}s'")
            cursor.execute(f"SET statement_timeout = '{STATEMENT_S}s'")
        connection.commit()

    return engine


def read_password(file: Path) -> str:
    """Return the ledger's password: all that `file` holds but the end of its line. No message quotes it.

    Raises:
        LedgerError: the file cannot be read or is empty.
    """
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"ledger.password_file = {str(file)!r} cannot be read: {type(error).__name__}") from error
    if not password:
        raise LedgerError(f"ledger.password_file = {str(file)!r} is empty; write the password into it")
    return password


def _make_private(file: Path) -> None:
    """Set 0600, in a directory made 0700.

    SQLite gives its -wal and -shm files the permissions of the database.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(OSError):  # SQLite reports better what is wrong
        file.touch(mode=0o600)
        for path in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
            if path.exists():
                path.chmod(0o600)


@dataclass(frozen=True)
class Schema:
    """Revisions of a schema: the ledger's (None: no tables yet), and the newest that this program knows."""

    present: str | None
    newest: str


def missing_file(url: str) -> Path | None:
    """Return the SQLite file of the ledger at `url` if it does not exist, else None."""
    parsed = make_url(url)
    file = Path(parsed.database or "")
    return file if parsed.get_backend_name() == "sqlite" and not file.exists() else None


def schema_of(url: str, password_file: Path | None = None) -> Schema:
    """Return the schema of the ledger at `url`, which is left as it is; no SQLite file is made.

    Raises:
        LedgerTooNew: this program does not know the schema.
        SQLAlchemyError, ImportError, ValueError: the ledger cannot be opened.
    """
    if missing_file(url):
        return Schema(None, _scripts().get_current_head() or "")
    engine = open_engine(url, password_file)
    try:
        with engine.connect() as connection:
            return _schema(connection, _scripts())
    finally:
        engine.dispose()


def migrate(engine: Engine) -> None:
    """Migrate the schema to the newest version; if nodes start at once, one does it and the others wait.

    Raises:
        LedgerTooNew: this program does not know the schema.
    """
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        found = _schema(connection, scripts)
    if found.present == found.newest:
        return
    with engine.execution_options(write=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        _schema(connection, scripts)
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
