"""What commands share: the options that more than one has, the console, and the way into the ledger."""

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
    typer.Option("--config", "-c", help="TOML settings file; /etc/mammod/mammod.toml where it exists."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only jobs made then or later: 2026-11-25T08:00 (UTC), or an age: 36h, 7d."),
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs made before: a time, or an age.")]
UntrainedOption = Annotated[
    bool,
    typer.Option("--allow-untrained", help="Accept a bundle that was never trained. Its numbers mean nothing."),
]


@contextmanager
def ending_for_good() -> Iterator[None]:
    """A refused setting or ledger ends the command with status 78 (EX_CONFIG of sysexits.h): starting again does not help."""
    try:
        yield
    except ConfigurationError as error:
        print(f"mammod: {error}", file=sys.stderr)
        raise typer.Exit(os.EX_CONFIG) from error


@contextmanager
def open_ledger(settings: Settings) -> Iterator[Ledger]:
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


def time_of(option: str, text: str | None, now: float) -> float | None:
    """Seconds since the epoch of `text`: ISO 8601 (UTC where it names no zone), or an age such as 90m, 36h, 7d, 2w.

    Raises:
        ConfigurationError: it is neither; `option` is named.
    """
    if text is None:
        return None
    if age := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return now - float(age[1]) * {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}[age[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{option} {text!r} is no time; write 2026-11-25, 2026-11-25T08:00 (UTC), or an age such as 36h or 7d"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def states_of(option: str, names: list[str]) -> tuple[str, ...]:
    """The states of jobs so named.

    Raises:
        ConfigurationError: there is no such state.
    """
    from daemon.ledger.schema import JobState

    for name in names:
        if name not in set(JobState):
            raise ConfigurationError(f"{option} {name}: there is no such state; allowed: {', '.join(JobState)}")
    return tuple(names)


def when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:4242")
    return host.strip("[]"), int(port)
