"""What needs no service: `mammod classify` on files, and the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigurationError
from config.settings import load_settings
from daemon.commands.shared import ConfigOption, UntrainedOption, host_and_port


def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo leaves behind.")] = Path("demo-output"),
    archive: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Report to this archive instead of the embedded one.")
    ] = None,
    aet: Annotated[str, typer.Option(help="AE title of that archive.")] = "ARCHIVE",
) -> None:
    """Run the main job on eight real mammograms with ten known lesions and show what came of it."""
    from daemon.demo.run import run_demo

    raise typer.Exit(run_demo(output, host_and_port(archive) if archive else None, aet))


def classify(
    files: Annotated[
        list[Path], typer.Argument(help="Mammograms and the SEG or SR objects that mark lesions on them, or folders.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for reports and pictures.")] = Path("mammod-reports"),
    kinds: Annotated[
        str | None, typer.Option(help="Kinds of report, with commas between; those of the settings if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
) -> None:
    """Classify files without any network: prints a table, writes the service's reports and pictures to a folder.

    Exit status 1: a file could not be read, or a lesion object did not get all its reports and pictures.
    """
    from daemon.classify_files import classify_files

    settings = load_settings(config)
    chosen = settings.reports.kinds if kinds is None else _kinds(kinds)
    raise typer.Exit(classify_files(files, output, settings, chosen, allow_untrained, as_json))


def _kinds(text: str) -> Sequence[str]:
    from daemon.reports.kinds import KINDS

    named = [name.strip() for name in text.split(",")]
    if wrong := [name for name in named if name not in KINDS]:
        raise ConfigurationError(f"--kinds {text}: there is no kind {wrong[0]!r}; allowed: {', '.join(KINDS)}")
    return list(dict.fromkeys(named))
