"""The real service in a process of its own, for tests: `mammod serve` on free loopback ports with its own
spool.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from sqlalchemy import Row, select

from config.settings import ENVIRONMENT_PREFIX
from daemon.ledger import Ledger
from daemon.ledger.jobs import retry
from daemon.ledger.schema import instances, jobs, outbox
from tests.support import launch
from tests.support.fork_server import ForkedProgram, is_installed
from tests.support.peers.programs import free_port, wait_until
from tests.support.repository import ROOT

AE_TITLE = "MAMMOD"
START_LIMIT_S = 120
STOP_LIMIT_S = 90
WORK_LIMIT_S = 90


@dataclass
class Service:
    """A service on 127.0.0.1:`port`; `start`, `kill` and `stop` it any number of times over the same
    spool.
    """

    folder: Path
    port: int
    status_port: int
    settings: Path
    bundle: Path
    engine: str = "stand-in"
    process: subprocess.Popen[bytes] | ForkedProgram | None = None
    # Forked from a server that has its modules; False: a program as a user starts it, with child processes.
    forked: bool = field(default_factory=is_installed)
    starts: int = 0
    host: str = "127.0.0.1"
    aet: str = AE_TITLE
    environment: dict[str, str] = field(default_factory=dict)
    ledger_url: str = ""

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("service-*.log")))

    def start(self, crash: str = "", *, wait: bool = True) -> None:
        """Start it and wait for its ready line; `crash` is a step of `tests.support.launch`."""
        self.starts += 1
        output = self.folder / f"service-{self.starts:02}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        environment |= {"MAMMOD_TEST_ENGINE": self.engine, "MAMMOD_TEST_CRASH": crash, "PYTHONPATH": str(ROOT)}
        environment |= self.environment
        with output.open("wb") as file:
            if self.forked:
                self.process = ForkedProgram(launch.main, ["mammod", *self.serve_arguments()], environment, file)
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.launch", *self.serve_arguments()],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
        if wait:
            self.wait_ready(output)

    def serve_arguments(self) -> list[str]:
        return ["serve", "--config", str(self.settings), "--allow-untrained"]

    def wait_ready(self, output: Path) -> None:
        process = self.process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, f"the service ended with {process.returncode}:\n{self.log[-3000:]}"
            return "ready" in output.read_text(errors="replace").splitlines()

        wait_until(ready, "the service's ready line", START_LIMIT_S)

    def wait_dead(self) -> int:
        assert self.process is not None
        return self.process.wait(WORK_LIMIT_S)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status, which is 0: with any other the log's end is the
        failure's message.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_LIMIT_S)
        assert status == 0, f"the stopped service ended with {status}:\n{self.log[-3000:]}"
        return status

    def rows(self, table: Any) -> Sequence[Row]:
        ledger = Ledger(self.ledger_url or f"sqlite:///{self.spool / 'ledger.sqlite'}")
        try:
            with ledger.read() as connection:
                return connection.execute(select(table).order_by(table.c.id)).all()
        finally:
            ledger.close()

    def jobs(self) -> Sequence[Row]:
        return self.rows(jobs)

    def outbox(self) -> Sequence[Row]:
        return self.rows(outbox)

    def instances(self) -> Sequence[Row]:
        return self.rows(instances)

    def retry(self, job_id: int) -> str:
        """What `mammod jobs retry` does; the service finds the job at its next look into the ledger."""
        ledger = Ledger(self.ledger_url or f"sqlite:///{self.spool / 'ledger.sqlite'}")
        try:
            with ledger.write() as connection:
                return retry(connection, job_id, time.time())
        finally:
            ledger.close()

    def wait_jobs(self, *states: str, limit_s: float = WORK_LIMIT_S) -> None:
        """Wait until the jobs' states, in the order of creation, are `states`."""
        wait_until(lambda: self._in_states(states), f"jobs {states}", limit_s)

    def _in_states(self, states: Sequence[str]) -> bool:
        return [job.state for job in self.jobs()] == list(states)

    def files(self) -> set[str]:
        """Every file of the spool but the ledger's and the bundle's, by path relative to it."""
        return {
            str(path.relative_to(self.spool))
            for path in self.spool.rglob("*")
            if path.is_file()
            and not path.name.startswith("ledger.sqlite")
            and not path.is_relative_to(self.spool / "bundle")
        }


@contextmanager
def service(
    folder: Path,
    bundle: Path,
    archive: tuple[str, int] = ("NOARCHIVE", 1),
    *,
    engine: str = "stand-in",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Service]:
    """A service that is not started yet; `archive` is (AE title, port on loopback), `settings` adds to its
    sections.
    """
    folder.mkdir(parents=True)
    port, status_port = free_port(), free_port()
    sections: dict[str, dict[str, Any]] = {
        "listener": {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": port, "processes": 2},
        "archive": {
            "ae_title": archive[0], "host": "127.0.0.1", "port": archive[1],
            "timeout_s": 10, "retry_first_s": 0.2, "retry_max_s": 1,
        },
        "spool": {"directory": str(folder / "spool"), "min_free": "1 MB"},
        "model": {"bundle": str(bundle)},
        "workers": {"decoders": 1},
        "status": {"port": status_port},
        "log": {"format": "json"},
    }  # fmt: skip
    for section, values in (settings or {}).items():
        sections.setdefault(section, {}).update(values)
    file = folder / "mammod.toml"
    write_settings(file, sections)
    running = Service(folder, port, status_port, file, bundle, engine)
    running.ledger_url = str(sections.get("ledger", {}).get("url", ""))
    try:
        yield running
    finally:
        running.kill()


def write_settings(file: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """JSON's strings, numbers, booleans and arrays of them are TOML's."""
    file.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
            for section, values in sections.items()
        )
    )


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
