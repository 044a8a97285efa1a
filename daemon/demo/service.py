"""Run `mammod serve` for the demo: a separate process on free loopback ports with its own spool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from config.errors import MammodError
from config.settings import ENVIRONMENT_PREFIX
from daemon.demo.archive import Stored, file_name
from daemon.ledger import Ledger
from daemon.ledger.schema import JobState, OutboxState, jobs, outbox

AE_TITLE = "MAMMOD"
READY_TIMEOUT_S = 300  # import TensorFlow, build a network and warm it up, on a slow disk
STOP_TIMEOUT_S = 120
_POLL_S = 0.1
_LOG_TAIL = 30  # lines


class DemoService:
    """One service process from `start` to `stop`; its output goes to the file `log`.

    `archive` is (host, port, AE title). The caller's settings, from default file or environment, are unused.
    """

    def __init__(self, folder: Path, archive: tuple[str, int, str], log: Path) -> None:
        self.port = _free_port()
        self.spool = folder / "spool"
        self.is_converted = _keep_engine(self.spool)
        self.log = log
        self._settings = folder / "mammod.toml"
        self._settings.write_text(_settings(self.port, archive, self.spool), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._ledger: Ledger | None = None
        self._confirmed: dict[str, Stored] = {}

    def start(self) -> None:
        """Start the process; return when it has printed its ready line.

        Raises:
            MammodError: it exited or was not ready in time; the message ends with the log's last lines.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        command = [sys.executable, "-m", "daemon", "serve", "--config", str(self._settings), "--allow-untrained"]
        with self.log.open("wb") as log:
            # Its own session: Ctrl-C reaches the demo alone, which then stops the service cleanly.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        limit = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise MammodError(f"the service exited with status {self._process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > limit:
                raise MammodError(f"the service was not ready within {READY_TIMEOUT_S} s:\n{self.log_tail()}")
            time.sleep(_POLL_S)
        self._ledger = Ledger(f"sqlite:///{self.spool / 'ledger.sqlite'}")

    def check_running(self) -> None:
        """Check that the process is running.

        Raises:
            MammodError: it exited by itself.
        """
        if self._process is not None and self._process.poll() is not None:
            raise MammodError(f"the service exited with status {self._process.returncode}:\n{self.log_tail()}")

    def stop(self) -> int | None:
        """Send SIGTERM and wait; return the exit status, None if it was killed. May be called again."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def failures(self) -> dict[str, str]:
        """Return the lesion objects that will get no report, by SOP Instance UID, with state and reason."""
        ended = (JobState.QUARANTINED, JobState.FAILED)
        with self._open_ledger().read() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.state.in_(ended))).all()
        return {row.source_uid: f"{row.state}: {row.reason or 'no reason given'}" for row in rows}

    def confirmed_reports(self, folder: Path) -> dict[str, Stored]:
        """Return the reports that the archive stored, by UID; copy each from the outbox to `folder`.

        The file in the outbox is what was sent, byte for byte; the time is that of the archive's answer.
        """
        ledger = self._open_ledger()
        with ledger.read() as connection:
            rows = connection.execute(
                select(outbox).where(outbox.c.state == OutboxState.STORED).order_by(outbox.c.stored_at)
            ).all()
        for row in rows:
            if row.sop_instance_uid not in self._confirmed:
                path = folder / file_name(len(self._confirmed) + 1)
                shutil.copyfile(self.spool / row.path, path)
                self._confirmed[row.sop_instance_uid] = Stored(path, row.stored_at)
        return dict(self._confirmed)

    def log_tail(self) -> str:
        """Return the last lines of the service's output."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:])

    def _is_ready(self) -> bool:
        return "ready" in self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            raise MammodError("the service is not running: it was not started, or was stopped")
        return self._ledger


def _keep_engine(spool: Path) -> bool:
    """Keep the converted network in the user's caches for the next demo; return whether one is there."""
    caches = os.environ.get("XDG_CACHE_HOME")
    kept = (Path(caches) if caches else Path.home() / ".cache") / "mammod" / "engine"
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.mkdir(mode=0o700)
        (spool / "engine").symlink_to(kept)
        return any(path.is_dir() for path in kept.iterdir())
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _settings(port: int, archive: tuple[str, int, str], spool: Path) -> str:
    host, archive_port, ae_title = archive
    return f"""\
[listener]
ae_title = "{AE_TITLE}"
host = "127.0.0.1"
port = {port}

[archive]
host = {json.dumps(host)}
port = {archive_port}
ae_title = {json.dumps(ae_title)}
retry_first_s = 1

[spool]
directory = {json.dumps(str(spool))}
min_free = "100MiB"

[status]
port = {_free_port()}

[log]
format = "console"
"""
