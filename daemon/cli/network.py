"""`mammod send` and `mammod echo`: DICOM by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigurationError
from config.loading import load_settings
from daemon.cli.options import ConfigOption, console, host_and_port


def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files to send by C-STORE.")],
    to: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Destination; the service's own listener if not given.")
    ] = None,
    aet: Annotated[str | None, typer.Option(help="Called AE title; the service's own if not given.")] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Use DICOM TLS with the files of [archive] tls, or of [listener] tls; "
            "if not given, as the service's own listener requires, and no TLS to another node.",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Send DICOM files to the service itself or to another node; print each answer.

    Exit status: 0 all were stored, 1 one was not, 2 wrong command line.

    Examples:

        mammod send image.dcm lesions.dcm

        mammod send --to 10.1.2.3:104 --aet PACS folder/
    """
    from daemon.tools.send_files import send_files

    settings = load_settings(config)
    host, port = host_and_port(to) if to else ("127.0.0.1", settings.listener.port)
    own = settings.listener.tls
    use_tls = to is None and own is not None if tls is None else tls
    credentials = (own if to is None else settings.archive.tls or own) if use_tls else None
    if use_tls and credentials is None:
        raise ConfigurationError("--tls needs certificate, key and ca: set archive.tls (or listener.tls)")
    called = aet or settings.listener.ae_title
    raise typer.Exit(
        send_files(files, host=host, port=port, ae_title=called, settings=settings, console=console, tls=credentials)
    )


def echo(
    to: Annotated[
        str | None,
        typer.Argument(metavar="[HOST:PORT]", help="The node to call; the archive in the settings if not given."),
    ] = None,
    aet: Annotated[
        str | None, typer.Option(help="Called AE title; the archive's if no HOST:PORT is given, else ANY-SCP.")
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Use DICOM TLS with the files of [archive] tls, or of [listener] tls; if not given, as for the archive, "
            "and no TLS to another HOST:PORT.",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Send a C-ECHO with our AE title to a DICOM node and print whether it answers.

    Exit status: 0 it answered with success, 1 it did not (the message says why), 2 wrong command line.

    Examples:

        mammod echo

        mammod echo 10.1.2.3:104 --aet PACS

        mammod echo 127.0.0.1:11112 --aet MAMMOD --tls
    """
    from daemon.archive.client import Archive
    from daemon.checks.archive import why_unreachable
    from daemon.errors import ArchiveError

    settings = load_settings(config)
    archive = settings.archive
    if to is None and archive.host is None:
        raise ConfigurationError("archive.host is not set, so there is no node to call; set it, or give HOST:PORT")
    host, port = (archive.host, archive.port) if to is None else host_and_port(to)
    files = archive.tls or settings.listener.tls
    if tls and files is None:
        raise ConfigurationError("--tls needs certificate, key and ca: set archive.tls (or listener.tls)")
    credentials = files if tls or (tls is None and to is None and archive.tls) else None
    called = aet or (archive.ae_title if to is None else "ANY-SCP")
    target = archive.model_copy(
        update={"host": host, "port": port, "ae_title": called, "tls": credentials, "stow_url": None}
    )
    ours = settings.listener.ae_title
    began = time.monotonic()
    try:
        Archive(target, ours, settings.spool.directory).echo()
    except ArchiveError as error:
        reason = why_unreachable(target)
        raise ArchiveError(
            f"{called} at {host}:{port}: {reason}" if reason else str(error).removeprefix("archive ")
        ) from error
    secure = " over TLS" if credentials else ""
    milliseconds = 1000 * (time.monotonic() - began)
    console.print(
        f"{called} at {host}:{port} answered {ours}'s C-ECHO{secure} ({milliseconds:.0f} ms)", highlight=False
    )
