"""What the real service tells systemd over NOTIFY_SOCKET: ready, status, watchdog, reloading, stopping."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.system.systemd import sd_notify, watchdog_interval_s
from tests.support.cases import Case
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.services import Service

WATCHDOG_S = 2.0


class Systemd:
    """The socket's other end: `messages` are the assignments that came, in order, with the time of their
    arrival.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._messages: list[tuple[float, str]] = []

    def close(self) -> None:
        self._socket.close()

    def messages(self) -> list[tuple[float, str]]:
        while True:
            try:
                text = self._socket.recv(65_536).decode()
            except BlockingIOError:
                return self._messages
            self._messages += [(time.monotonic(), line) for line in text.splitlines()]

    def said(self, name: str) -> list[str]:
        return [line.partition("=")[2] for _, line in self.messages() if line.startswith(f"{name}=")]


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@mammod-tests-{os.getpid()}-{time.monotonic_ns()}"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(str(tmp_path / "notify"))
    yield listening
    listening.close()


def started(service: Service, systemd: Systemd, **more: str) -> Service:
    service.environment |= {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)), **more}
    service.environment.pop("WATCHDOG_PID", None)
    service.start()
    return service


def test_a_message_reaches_a_path_and_an_abstract_name(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Systemd(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    sd_notify("READY=1", "STATUS=so")
    assert (listening.said("READY"), listening.said("STATUS")) == (["1"], ["so"])
    listening.close()
    sd_notify("WATCHDOG=1")  # nobody is there any more: no error


def test_the_watchdog_is_fed_by_the_process_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "120000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval_s() == 60
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval_s() == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


@pytest.mark.peers
def test_systemd_is_told_how_the_service_is(new_service: Callable[..., Service], systemd: Systemd, case: Case) -> None:
    service = started(new_service(), systemd)
    wait_until(lambda: systemd.said("READY") == ["1"], "READY=1")
    at_start = systemd.said("STATUS")
    assert "bundle" in at_start[0] and "classifier" in at_start[1], "what takes long at the start is named"
    wait_until(lambda: len(systemd.said("WATCHDOG")) > 3, "the watchdog is fed again and again")

    # No archive answers: a report waits, and the status line says so.
    dcmsend(case.files, service.host, service.port, service.aet)
    wait_until(lambda: systemd.said("STATUS")[-1].endswith("1 reports to send"), "the report in the status line", 60)
    assert case.image.PatientID not in str(systemd.messages())

    before = time.monotonic_ns() // 1000
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: systemd.said("READY") == ["1", "1"], "READY=1 again")
    (begun,) = systemd.said("MONOTONIC_USEC")
    assert before <= int(begun) <= time.monotonic_ns() // 1000
    lines = [line for _, line in systemd.messages()]
    assert lines.index("RELOADING=1") < len(lines) - 1 - lines[::-1].index("READY=1")

    assert service.stop() == 0
    assert systemd.said("STOPPING") == ["1"]
    assert int(systemd.said("EXTEND_TIMEOUT_USEC")[-1]) > 60e6, "[service] shutdown_timeout_s and what follows it"


def test_a_dispatcher_that_hangs_starves_the_watchdog(
    new_service: Callable[..., Service], systemd: Systemd, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    service = started(new_service(), systemd, MAMMOD_TEST_HANG=str(hang))
    wait_until(lambda: len(systemd.said("WATCHDOG")) > 1, "the watchdog is fed")

    def silence() -> float:
        return time.monotonic() - max(at for at, line in systemd.messages() if line == "WATCHDOG=1")

    hang.touch()
    wait_until(lambda: silence() > 2 * WATCHDOG_S, "silence for which systemd would end it", 60)
    assert service.process is not None and service.process.poll() is None
    hang.unlink()
    wait_until(lambda: silence() < WATCHDOG_S / 2, "it is fed again")
    assert service.stop() == 0
