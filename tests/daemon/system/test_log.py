"""What the log says of exceptions and of libraries that quote what they read: type and place, no value."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TextIO

import pytest
import structlog

from config.settings import Log
from daemon.errors import LedgerError
from daemon.system import log as logging_setup

SECRET = "PLANTED^NAME"


@pytest.fixture(params=["json", "console"])
def said(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """The log as text; everything is put back after the test."""
    stream = io.StringIO()
    with logging_to(stream, request.param):
        yield stream.getvalue


@contextmanager
def logging_to(stream: TextIO, format: Literal["json", "console"]) -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers, root.level, threading.excepthook, warnings.filters[:], structlog.get_config()
    logging_setup.configure(Log(level="debug", format=format), stream)
    yield
    root.handlers, threading.excepthook, warnings.filters[:] = before[0], before[2], before[3]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    structlog.configure(**before[4])


def test_a_log_that_cannot_be_written_fails_nothing() -> None:
    with Path("/dev/full").open("w") as full, logging_to(full, "json"):  # a disk without space
        structlog.get_logger().info("instance accepted")
        structlog.get_logger().error("told in vain", exc_info=ValueError())
        with suppress(OSError):  # what is in the buffer still
            full.close()
        structlog.get_logger().info("the stream was closed")


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"Invalid value for VR PN: {SECRET}") from error


def test_an_exception_is_told_by_kind_and_place(said: Callable[[], str]) -> None:
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("instance failed", status="0110")
        logging.getLogger("some.library").exception("it failed")
    text = said()
    assert SECRET not in text
    for part in ("instance failed", "it failed", "ValueError", "KeyError", "test_log.py", "fail"):
        assert part in text, part
    assert "Traceback" not in text


def test_our_own_message_is_told_whole(said: Callable[[], str]) -> None:
    try:
        raise LedgerError("install that version again")
    except LedgerError:
        structlog.get_logger().exception("no start")
    assert "install that version again" in said()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_thread_is_told_likewise(
    said: Callable[[], str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.excepthook", None)  # so that it is put back
    logging_setup.catch_unhandled()
    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
    text = said()
    assert "thread ended by an exception" in text and "ValueError" in text
    assert SECRET not in text + "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["pydicom", "highdicom.sr", "pynetdicom.acse", "py.warnings", "PIL.Image"])
def test_what_a_library_quotes_is_replaced_by_its_place(said: Callable[[], str], name: str) -> None:
    logging.getLogger(name).warning("Invalid value: '%s'", SECRET)
    assert SECRET not in said()
    assert "test_log.py" in said()


def test_a_warning_of_python_is_too(said: Callable[[], str]) -> None:
    warnings.warn(f"value {SECRET}", UserWarning, stacklevel=1)
    assert SECRET not in said()


def test_json_lines_stay_one_object_each(said: Callable[[], str], request: pytest.FixtureRequest) -> None:
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    if said().startswith("{"):
        lines: list[dict[str, Any]] = [json.loads(line) for line in said().splitlines()]
        assert lines[0]["exception"].startswith("ValueError (test_log.py:")
