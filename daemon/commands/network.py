"""DICOM by hand: `mammod send`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigurationError
from config.settings import load_settings
from daemon.commands.shared import ConfigOption, console, host_and_port


def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files to send by C-STORE.")],
    to: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to; the service's own listener if not given.")
    ] = None,
    aet: Annotated[str | None, typer.Option(help="Called AE title; the service's own if not given.")] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="DICOM TLS with the files of [archive] tls, or of [listener] tls; "
            "if not given, what the service's own listener wants when sending to it, else none.",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Send DICOM files, to the service itself or to another node, and print each answer."""
    from daemon.send_files import send_files

    settings = load_settings(config)
    host, port = host_and_port(to) if to else ("127.0.0.1", settings.listener.port)
    own = settings.listener.tls
    wanted = to is None and own is not None if tls is None else tls
    files_of_tls = (own if to is None else settings.archive.tls or own) if wanted else None
    if wanted and files_of_tls is None:
        raise ConfigurationError("--tls needs certificate, key and ca: set archive.tls (or listener.tls)")
    called = aet or settings.listener.ae_title
    raise typer.Exit(send_files(files, host, port, called, settings, console, files_of_tls))
