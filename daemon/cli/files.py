"""What needs no running service: `mammod classify` on files, `replay` of finished jobs, and the demo."""

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
    time_of,
)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo leaves behind.")] = Path("demo-output"),
    archive: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Report to this archive instead of the embedded one.")
    ] = None,
    aet: Annotated[str, typer.Option(help="AE title of that archive.")] = "ARCHIVE",
) -> None:
    """Run the main job on eight real mammograms with ten known lesions and show what came of it.

    Exit status: 0 all of it went well, 1 something did not.

    Examples:

        mammod demo

        mammod demo --archive 10.1.2.3:104 --aet PACS
    """
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

    Examples:

        mammod classify folder/

        mammod classify image.dcm lesions.dcm --kinds tid1500,sc --output reports

        mammod classify folder/ --json | jq .lesion_objects[].lesions
    """
    from daemon.tools.classify_files import classify_files

    settings = load_settings(config)
    chosen = settings.reports.kinds if kinds is None else _kinds(kinds)
    raise typer.Exit(classify_files(files, output, settings, chosen, allow_untrained, as_json))


def replay(
    bundle: Annotated[Path, typer.Option(help="The other bundle: a folder.")],
    out: Annotated[Path, typer.Option(help="Folder for reports, tables and page; the same again goes on from there.")],
    since: SinceOption = None,
    until: UntilOption = None,
    job: Annotated[list[int] | None, typer.Option(help="Only this job; may be given more than once.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many jobs, oldest first.")] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Use the GPU too; it is left to the service if not given.")
    ] = False,
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
) -> None:
    """Run finished jobs again under another bundle and compare: a shadow, nothing of it is ever sent.

    The service may run: this only reads its ledger and spool, in processes of lowest priority. What it makes lies in --out:
    reports/, comparison.csv, not-replayed.csv (with the reasons) and index.html. A replay that was ended goes on where it was.

    Exit status: 0 every chosen job was replayed, 1 one could not be (or none was chosen), 2 the command line is wrong.

    Examples:

        mammod replay --bundle /var/lib/mammod/bundles/next --out replay-next --since 30d

        mammod replay --bundle next --out replay-next --job 17 --job 18
    """
    from rich.console import Console

    from daemon.ledger.job_query import JobQuery
    from daemon.tools.replay import STATES
    from daemon.tools.replay import replay as replay_jobs
    from model.bundle import load_bundle

    settings = load_settings(config)
    now = time.time()
    chosen = JobQuery(
        time_of("--since", since, now),
        time_of("--until", until, now),
        () if job else tuple(STATES),  # of a job that was named, tell why it cannot be replayed
        tuple(job or ()),
        limit,
    )
    opened = load_bundle(bundle, allow_untrained=allow_untrained)
    with open_ledger(settings) as ledger:
        raise typer.Exit(replay_jobs(settings, ledger, chosen, opened, out, Console(markup=False), gpu=gpu))


def _kinds(text: str) -> Sequence[str]:
    from daemon.reports.registry import KINDS

    named = [name.strip() for name in text.split(",")]
    if wrong := [name for name in named if name not in KINDS]:
        raise ConfigurationError(f"--kinds {text}: there is no kind {wrong[0]!r}; allowed: {', '.join(KINDS)}")
    return list(dict.fromkeys(named))
