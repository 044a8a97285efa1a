"""A supervised process: started with a limit, asked, pinged, killed if it hangs, restarted with back-off."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.events import bus
from daemon.events.bus import WorkerKind, WorkerRestarted
from daemon.system.backoff import Backoff
from daemon.system.child_process import AnswerTimeout, ChildExited, initialise_child
from daemon.system.supervisor import PingRule, SupervisedProcess
from tests.support.peers.programs import wait_until

LIMIT_S = 60.0


def echo(pipe: Connection, status: int = 0) -> None:
    """Send its id, then each request back; "hang" and "exit" do what they say."""
    initialise_child("mammod-test")
    pipe.send(os.getpid())
    while (request := pipe.recv()) is not None:
        if request == "hang":
            signal.pause()
        if request == "exit":
            os._exit(status)
        pipe.send(request)


def silent(pipe: Connection) -> None:
    signal.pause()


@pytest.fixture
def process() -> Iterator[SupervisedProcess]:
    made = SupervisedProcess("mammod-test", WorkerKind.DECODER, echo, 7)
    yield made
    made.close()


def test_it_is_started_once_and_asked(process: SupervisedProcess) -> None:
    assert process.pid is None and not process.is_dead
    assert process.ready() == process.pid == process.ready()
    assert process.ask(LIMIT_S, "hello") == "hello"
    pid = process.pid
    process.stop(None, LIMIT_S)
    assert process.pid is None and pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_is_not_ready_in_time_is_killed() -> None:
    process = SupervisedProcess("mammod-test", WorkerKind.DECODER, silent, start_limit_s=0.5)
    with pytest.raises(AnswerTimeout, match=r"no answer within 0\.5 s"):
        process.ready()
    assert process.is_dead and process.close() == -signal.SIGKILL


def test_one_that_does_not_answer_in_time_is_killed_and_replaced(process: SupervisedProcess) -> None:
    first = process.ready()
    with pytest.raises(AnswerTimeout):
        process.ask(0.5, "hang")
    assert process.is_dead
    told: list[bus.Event] = []
    with bus.subscribed(told.append):
        process.replace()
    assert told == [WorkerRestarted(WorkerKind.DECODER)]
    assert process.ready() != first


def test_an_exit_has_its_reason(process: SupervisedProcess) -> None:
    process.ready()
    with pytest.raises(ChildExited, match=r"ended \(7\)") as exited:
        process.ask(LIMIT_S, "exit")
    assert not exited.value.is_killed
    process.replace()
    pid = process.ready()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildExited) as killed:
        process.ask(LIMIT_S, "hello")
    assert killed.value.is_killed


def test_a_process_that_answers_no_ping_is_killed(process: SupervisedProcess) -> None:
    messages = process.messages(PingRule("hang", after_s=0.1, limit_s=0.5))
    assert next(messages) == process.pid
    with capture_logs() as logged:
        assert list(messages) == [], "it was pinged, and hangs"
    assert [entry["event"] for entry in logged] == ["process hangs, killing it"]
    wait_until(lambda: process.is_dead, "it is killed")


def test_a_silent_process_that_answers_its_pings_lives(process: SupervisedProcess) -> None:
    messages = process.messages(PingRule("alive", after_s=0.05, limit_s=LIMIT_S))
    assert [next(messages) for _ in range(4)] == [process.pid, "alive", "alive", "alive"]


def test_the_pause_grows_with_failures_and_a_start_resets_it() -> None:
    process = SupervisedProcess("mammod-test", WorkerKind.DECODER, echo, backoff=Backoff(100.0, 1000.0))
    assert process.pause_left_s == 0.0
    process.note_failure()
    assert 90 < process.pause_left_s <= 100
    process.note_failure()
    assert 190 < process.pause_left_s <= 200
    process.note_started()
    assert process.pause_left_s == 0.0


def test_it_is_kept_running_until_it_is_stopped() -> None:
    process = SupervisedProcess("mammod-test", WorkerKind.RECEIVER, echo, backoff=Backoff(0.2, 0.4))
    stopping = threading.Event()
    started: list[tuple[int, float]] = []

    def serve() -> int | None:
        try:
            for message in process.messages(PingRule("alive", after_s=LIMIT_S, limit_s=LIMIT_S)):
                started.append((message, time.monotonic()))
                process.send("exit")
        finally:
            exitcode = process.close()
        return exitcode

    told: list[Any] = []
    with capture_logs() as logged, bus.subscribed(told.append):
        thread = threading.Thread(target=process.keep_running, args=(serve, stopping))
        thread.start()
        wait_until(lambda: len(started) >= 3, "it was started three times", LIMIT_S)
        stopping.set()
        process.kill()
        thread.join(LIMIT_S)
    assert not thread.is_alive() and process.pid is None
    assert len({pid for pid, _ in started}) == len(started)
    assert WorkerRestarted(WorkerKind.RECEIVER) in told
    exits = [entry["exit"] for entry in logged if entry["event"] == "process exited, restarting"]
    assert exits[:2] == [0, 0]


def test_nothing_can_be_sent_to_a_process_that_is_not_there(process: SupervisedProcess) -> None:
    with pytest.raises(BrokenPipeError):
        process.send("hello")
