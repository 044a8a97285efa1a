"""Commands that need no running service: `mammod classify`, `mammod replay` and `mammod demo`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from config.errors import ConfigurationError
from config.loading import load_settings
from daemon.cli.options import (
    ConfigOption,
    SinceOption,
    UntilOption,
    UntrainedOption,
    host_and_port,
    open_ledger,
    parse_time,
    warn_renamed,
)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's results.")] = Path("demo-output"),
    archive: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Report to this archive instead of the embedded one.")
    ] = None,
    aet: Annotated[str, typer.Option(help="AE title of that archive.")] = "ARCHIVE",
) -> None:
    """Run the service on eight real mammograms with ten known lesions and show the reports.

    Exit status: 0 every lesion was reported, 1 something failed.

    Examples:

        mammod demo

        mammod demo --archive 10.1.2.3:104 --aet PACS
    """
    from daemon.demo.run import run_demo

    raise typer.Exit(run_demo(output, host_and_port(archive) if archive else None, aet))


def classify(
    files: Annotated[
        list[Path],
        typer.Argument(help="Mammograms and the SEG, SR or presentation states that mark lesions on them, or folders."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for reports and pictures.")] = Path("mammod-reports"),
    kinds: Annotated[
        str | None, typer.Option(help="Kinds of report, separated by commas; [reports] kinds if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
) -> None:
    """Classify files without network access: print a table, write reports and pictures to a folder.

    Exit status: 0 success, 1 a file could not be read or a lesion object lacks a report or picture.

    Examples:

        mammod classify folder/

        mammod classify image.dcm lesions.dcm --kinds tid1500,sc --output reports

        mammod classify folder/ --json | jq .lesion_objects[].lesions
    """
    from daemon.tools.classify_files import classify_files

    settings = load_settings(config)
    raise typer.Exit(
        classify_files(
            files,
            output,
            settings=settings,
            kinds=settings.reports.kinds if kinds is None else _kinds(kinds),
            allow_untrained=allow_untrained,
            as_json=as_json,
        )
    )


def replay(
    bundle: Annotated[Path, typer.Option(help="The other bundle: a folder.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; an earlier replay there is resumed. Required.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", hidden=True)] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    job: Annotated[list[int] | None, typer.Option(help="Only this job; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many jobs, oldest first.")] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Use the GPU too; without it the GPU is left to the service.")
    ] = False,
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
) -> None:
    """Run finished jobs again under another bundle and compare the results; nothing is ever sent.

    The service may be running: its ledger and spool are only read, by processes of lowest priority. The
    folder --output receives reports/, comparison.csv, not-replayed.csv (with reasons) and index.html. The
    same command resumes an interrupted replay.

    Exit status: 0 every selected job was replayed, 1 one was not or none was selected, 2 wrong command line.

    Examples:

        mammod replay --bundle /var/lib/mammod/bundles/next --output replay-next --since 30d

        mammod replay --bundle next --output replay-next --job 17 --job 18
    """
    from rich.console import Console

    from daemon.ledger.job_query import JobQuery
    from daemon.tools.replay import STATES
    from daemon.tools.replay import replay as replay_jobs
    from model.bundle import load_bundle

    if out is not None:
        warn_renamed("--out", "--output")
    folder = output or out
    if folder is None:
        raise typer.BadParameter("name a folder for the results", param_hint="--output")
    settings = load_settings(config)
    now = time.time()
    query = JobQuery(
        since=parse_time("--since", since, now),
        until=parse_time("--until", until, now),
        states=() if job else tuple(STATES),  # a job given by number is reported even if it cannot be replayed
        numbers=tuple(job or ()),
        limit=limit,
    )
    opened = load_bundle(bundle, allow_untrained=allow_untrained)
    with open_ledger(settings) as ledger:
        failed = replay_jobs(
            settings=settings,
            ledger=ledger,
            query=query,
            bundle=opened,
            output=folder,
            console=Console(markup=False),
            gpu=gpu,
        )
    raise typer.Exit(failed)


def _kinds(text: str) -> Sequence[str]:
    from daemon.reports.registry import KINDS

    named = [name.strip() for name in text.split(",")]
    if wrong := [name for name in named if name not in KINDS]:
        raise ConfigurationError(f"--kinds {text}: there is no kind {wrong[0]!r}; allowed: {', '.join(KINDS)}")
    return list(dict.fromkeys(named))
