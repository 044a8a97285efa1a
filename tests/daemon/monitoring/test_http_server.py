"""The status port: whom it listens to, and what it answers that asks nobody else."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from config.settings import Settings, Status
from daemon.monitoring.http_server import StatusHttpServer
from daemon.monitoring.status_report import live
from tests.support.peers.programs import free_port

NOTHING: Any = None  # ledger, archive, bundle and what is observed, which /live does not ask


@contextmanager
def serving(status: dict[str, Any], said: dict[str, Any]) -> Iterator[None]:
    server = StatusHttpServer(Settings(status=status), NOTHING, NOTHING, NOTHING, lambda: said, NOTHING)
    server.start()
    try:
        yield
    finally:
        server.stop()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_it_listens_on_127_0_0_1_alone_unless_told() -> None:
    port = free_port()
    with serving({"port": port}, {}):
        assert answers("127.0.0.1", port)
        assert not answers("127.0.0.2", port), "another address of this machine"
    with serving({"port": port, "host": "0.0.0.0"}, {}):
        assert answers("127.0.0.2", port)


def test_live_is_what_the_command_reads_and_none_where_nobody_answers() -> None:
    port = free_port()
    said = {"rejected": {"unknown_peer": 3}, "certificates": [], "audit": None}
    with serving({"port": port}, said):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=10) as answer:
            assert json.load(answer) == said
        assert live(Status(port=port)) == live(Status(port=port, host="0.0.0.0")) == said
    assert live(Status(port=port)) is None


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b"{" * 5000])
def test_another_program_on_the_port_is_not_taken_for_the_service(body: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

        thread = threading.Thread(target=answer)
        thread.start()
        assert live(Status(port=server.getsockname()[1])) is None
        thread.join(10)
