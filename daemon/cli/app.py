"""Assemble the `mammod` command line; an error ends it with one message and exit status 1."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from config import __version__
from config.errors import MammodError
from daemon.cli import bundle, files, jobs, network, service

app = typer.Typer(
    name="mammod",
    help="A DICOM node that classifies marked mammogram lesions and reports to the archive. "
    "Research software, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    service.serve,
    files.demo,
    service.check,
    service.status,
    files.classify,
    network.send,
    network.echo,
    files.replay,
):
    app.command()(command)
app.add_typer(jobs.app, name="jobs")
app.add_typer(bundle.app, name="bundle")


def main() -> None:
    """Run the command; report a MammodError as one message on standard error and exit with status 1."""
    os.umask(0o077)  # any file written may hold patient data
    try:
        app()
    except MammodError as error:
        print(f"mammod: {error}", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mammod {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
