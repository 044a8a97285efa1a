"""Logging: structlog events, one line each; a console renderer on a terminal, JSON lines elsewhere.

Log records of libraries are rendered in the same way. Our own events do not pass through `logging`, which
would double their cost. Warnings of pydicom quote values of data sets, which may identify a patient, and so
may the message of any exception that is not ours. Of those only the type and the place are kept (invariant
6).
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from pynetdicom import _config as pynetdicom_config

from config.errors import MammodError
from config.settings import Log

# Libraries whose messages quote what they read.
QUOTING = ("pydicom", "highdicom", "pynetdicom", "py.warnings", "PIL")


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Set up logging for this process, before anything logs, and again when the settings have changed."""
    stream = stream or sys.stderr
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty()) if console else structlog.processors.JSONRenderer()
    rendering: list[Any] = [_place_exception, renderer]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _scrub_foreign],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    for name in ("pynetdicom", "highdicom", "alembic", "apscheduler", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    pynetdicom_config.LOG_REQUEST_IDENTIFIERS = False
    pynetdicom_config.LOG_RESPONSE_IDENTIFIERS = False
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    logging.captureWarnings(True)
    warnings.simplefilter("ignore", DeprecationWarning)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Unfailing(stream))),
        cache_logger_on_first_use=False,
    )


class _Unfailing:
    """A stream that drops what it cannot write: a full disk must not break the code that logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def catch_unhandled() -> None:
    """Log, instead of print, an exception that ends a thread or the process."""
    log = structlog.get_logger()

    def of_thread(unhandled: threading.ExceptHookArgs) -> None:
        name = unhandled.thread.name if unhandled.thread else None
        log.error("thread ended by an exception", thread=name, exc_info=unhandled.exc_value)

    threading.excepthook = of_thread
    sys.excepthook = lambda _kind, error, _trace: log.critical("ended by an exception", exc_info=error)


def _place_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Render an exception as its type and place, with its message only if it is our own."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = "; caused by ".join(_chain(error))
    return event


def _chain(error: BaseException | None) -> Iterator[str]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        places, trace = [], error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        message = f": {error}" if isinstance(error, MammodError) else ""
        yield f"{type(error).__name__}{message} ({' > '.join(places)})"
        error = error.__cause__ or error.__context__


def _scrub_foreign(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the message of a library that quotes values by the place of the log call."""
    record: logging.LogRecord | None = event.get("_record")
    if record is not None and record.name.split(".")[0] in {name.split(".")[0] for name in QUOTING}:
        event["event"] = f"{record.name} {record.levelname.lower()} at {record.filename}:{record.lineno}"
        event.pop("exc_info", None)
    return event
