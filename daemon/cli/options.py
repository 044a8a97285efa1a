"""Shared by several commands: options, the console, parsing of times and states, access to the ledger."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from config.errors import ConfigurationError
from config.settings import Settings

if TYPE_CHECKING:
    from daemon.ledger import Ledger

console = Console(markup=False)  # reasons and paths may hold square brackets

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML settings file; /etc/mammod/mammod.toml if it exists."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only jobs created then or later: 2026-11-25T08:00 (UTC), or an age: 36h, 7d."),
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs created before a time or an age.")]
UntrainedOption = Annotated[
    bool,
    typer.Option("--allow-untrained", help="Accept an untrained bundle. Its results mean nothing."),
]


@contextmanager
def configuration_errors_exit_78() -> Iterator[None]:
    """End the command with status 78 (EX_CONFIG of sysexits.h) on a ConfigurationError."""
    try:
        yield
    except ConfigurationError as error:
        print(f"mammod: {error}", file=sys.stderr)
        raise typer.Exit(os.EX_CONFIG) from error


@contextmanager
def open_ledger(settings: Settings) -> Iterator[Ledger]:
    """Open the ledger for the duration of the block.

    Raises:
        ConfigurationError: there is no ledger.
    """
    from daemon.ledger import Ledger
    from daemon.ledger.database import missing_file

    if missing := missing_file(settings.ledger_url):
        raise ConfigurationError(
            f"there is no ledger at {missing}; is this the service's settings file, and did the service ever start?"
        )
    ledger = Ledger(settings.ledger_url, settings.ledger.password_file)
    try:
        yield ledger
    finally:
        ledger.close()


def parse_time(option: str, text: str | None, now: float) -> float | None:
    """Return seconds since the epoch for ISO 8601 (UTC without a zone) or an age such as 90m, 36h, 7d, 2w.

    Raises:
        ConfigurationError: `text` is neither; the message names `option`.
    """
    if text is None:
        return None
    if age := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return now - float(age[1]) * {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}[age[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{option} {text!r} is not a time; write 2026-11-25, 2026-11-25T08:00 (UTC), or an age such as 36h or 7d"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_states(option: str, names: list[str]) -> tuple[str, ...]:
    """Return the job states with these names.

    Raises:
        ConfigurationError: there is no such state; the message names `option`.
    """
    from daemon.ledger.schema import JobState

    for name in names:
        if name not in set(JobState):
            raise ConfigurationError(f"{option} {name}: there is no such state; allowed: {', '.join(JobState)}")
    return tuple(names)


def iso_time(seconds: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC, or None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def warn_renamed(old: str, new: str) -> None:
    """Print on standard error that a command or option has a new name."""
    print(f"mammod: {old} is deprecated and will be removed in 0.3; use {new}", file=sys.stderr)


def host_and_port(text: str) -> tuple[str, int]:
    """Parse HOST:PORT; an IPv6 address is in square brackets.

    Raises:
        ConfigurationError: `text` is not HOST:PORT.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:4242")
    return host.strip("[]"), int(port)
