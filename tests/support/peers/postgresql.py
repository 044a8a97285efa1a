"""A real PostgreSQL server for tests: started as an unprivileged user in a folder of its own, with nothing
synced to disk.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from tests.support.peers.programs import free_port, missing, wait_until

USER = "mammod"
PASSWORD = "pg-password-PLANTED"
READY_LIMIT_S = 60


@dataclass
class PostgreSQL:
    """A server with one superuser, `mammod`: by its socket without a password, by 127.0.0.1:`port` with
    `PASSWORD`.
    """

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}&port={self.port}"

    def url_over_tcp(self, database: str) -> str:
        """One that wants a password."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), port=self.port, user=USER, dbname=database, autocommit=True)

    def start(self) -> None:
        options = {
            "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "100",
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.folder),
        }  # fmt: skip
        chosen = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        # It ends with the tests, however these end.
        command = [
            *_unprivileged("--pdeathsig", "QUIT"),
            str(self.programs / "postgres"),
            "-D",
            str(self.data),
            *chosen,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._answers, "PostgreSQL answers", READY_LIMIT_S)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """At once, as a server that is restarted ends ("fast"): connections are closed, transactions
        undone. SIGQUIT ("immediate"): as in a crash, from which the next start recovers.
        """
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")[-3000:]
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of an empty database."""
        name = f"ledger{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            if self.process is None:
                self.start()
            with self.connect() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _unprivileged(*options: str) -> list[str]:
    """A command that runs another as a user that PostgreSQL accepts."""
    if os.geteuid() != 0:
        return ["setpriv", *options]
    return ["setpriv", f"--reuid={_user().pw_uid}", f"--regid={_user().pw_gid}", "--clear-groups", *options]


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not installed or not shutil.which("setpriv"):
        missing("PostgreSQL's server", "postgresql")
    # Not pytest's folder, which only its own user can enter.
    folder = Path(tempfile.mkdtemp(prefix="mammod-postgresql-"))
    server = PostgreSQL(installed[-1].parent, folder, free_port())
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, password):
                os.chown(path, _user().pw_uid, _user().pw_gid)
        choices = [
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            f"--pwfile={password}",
            "--no-sync",
            "--encoding=UTF8",
        ]
        command = [
            *_unprivileged(),
            str(server.programs / "initdb"),
            "-D",
            str(server.data),
            "-U",
            USER,
            "--locale=C",
            *choices,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One server for all tests; each takes a `database()` of its own."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of an empty database."""
    with postgresql.database() as name:
        yield postgresql.url(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, once with each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    return str(request.getfixturevalue("postgresql_url"))
