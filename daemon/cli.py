"""The `mammod` command: service and operations. Each command says in its own words what went wrong, and exits 1."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import Row, select
from sqlalchemy.engine import make_url

from config import __version__
from config.errors import ConfigurationError, MammodError
from config.settings import Settings, load_settings

app = typer.Typer(
    name="mammod",
    help="A DICOM node that classifies marked mammogram lesions and reports to the archive. "
    "Research software, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
jobs_app = typer.Typer(help="Look at jobs and act on them.", no_args_is_help=True)
bundle_app = typer.Typer(help="Look at model bundles.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(bundle_app, name="bundle")

console = Console(markup=False)  # reasons and paths may hold square brackets

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML settings file; /etc/mammod/mammod.toml where it exists."),
]
UntrainedOption = Annotated[
    bool,
    typer.Option("--allow-untrained", help="Accept a bundle that was never trained. Its numbers mean nothing."),
]


def main() -> None:
    """Run the command; an error of ours is one message on stderr and exit status 1."""
    os.umask(0o077)  # whatever is written may be about a patient
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


@app.command()
def serve(config: ConfigOption = None, allow_untrained: UntrainedOption = False) -> None:
    """Run the service. Prints one line "ready" when it accepts associations; SIGTERM drains, SIGHUP reloads settings."""
    from daemon import log
    from daemon.service import Service

    settings = load_settings(config)
    log.configure(settings.log)
    log.catch_unhandled()
    Service(settings, config, allow_untrained).run()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the demo leaves behind.")] = Path("demo-output"),
    archive: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Report to this archive instead of the embedded one.")
    ] = None,
    aet: Annotated[str, typer.Option(help="AE title of that archive.")] = "ARCHIVE",
) -> None:
    """Run the main job on eight real mammograms with ten known lesions and show what came of it."""
    from daemon.demo.run import run_demo

    raise typer.Exit(run_demo(output, _host_and_port(archive) if archive else None, aet))


@app.command()
def check(
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Instead: compare ledger and spool, hashing every file. The service may run.")
    ] = False,
) -> None:
    """Tell in plain words what would keep the service from working, and what to do about it."""
    from daemon.check import deep_findings, findings

    settings = load_settings(config)
    bad = 0
    for finding in deep_findings(settings) if deep else findings(settings, allow_untrained):
        bad += not finding.good
        mark, style = ("ok ", None) if finding.good else ("BAD", "red")
        console.print(f"{mark} {finding.subject}: {finding.text}", style=style, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if bad else 0)


@app.command()
def status(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show what was received, jobs by state, reports, and whether the archive answers."""
    from daemon.archive import Archive
    from daemon.service import open_bundle, untrained_path
    from daemon.status import certificates, collect, live

    settings = load_settings(config)
    with _ledger(settings) as ledger:
        archive = Archive(settings.archive, settings.listener.ae_title, settings.spool.directory / "incoming")
        try:
            # Only one that is there: status must not make one.
            there = settings.model.bundle is not None or untrained_path(settings).exists()
            bundle = open_bundle(settings, allow_untrained=there)
        except MammodError:
            bundle = None
        state = collect(ledger, archive, bundle, live(settings.status))
    state["certificates"] = certificates(settings)
    if as_json:
        print(json.dumps(state, indent=2))
        return
    table = Table(title="mammod", show_header=False)
    for key, value in _flat(state):
        table.add_row(key, str(value))
    console.print(table)


@app.command()
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


@app.command()
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
    host, port = _host_and_port(to) if to else ("127.0.0.1", settings.listener.port)
    own = settings.listener.tls
    wanted = to is None and own is not None if tls is None else tls
    files_of_tls = (own if to is None else settings.archive.tls or own) if wanted else None
    if wanted and files_of_tls is None:
        raise ConfigurationError("--tls needs certificate, key and ca: set archive.tls (or listener.tls)")
    called = aet or settings.listener.ae_title
    raise typer.Exit(send_files(files, host, port, called, settings, console, files_of_tls))


@jobs_app.command("list")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first: one lesion object under one bundle each."""
    from daemon.ledger.schema import JobState
    from daemon.ledger.schema import jobs as table

    if state is not None and state not in set(JobState):
        raise ConfigurationError(f"--state {state}: there is no such state; allowed: {', '.join(JobState)}")
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state)
    with _ledger(load_settings(config)) as ledger, ledger.read() as connection:
        rows = connection.execute(query).all()
    if as_json:
        for row in rows:
            print(json.dumps(_job_facts(row)))
        return
    shown = Table("job", "state", "created", "lesion object", "reason", title=f"{len(rows)} jobs")
    for row in rows:
        shown.add_row(str(row.id), row.state, _when(row.created_at), row.source_uid, row.reason or "")
    console.print(shown)


@jobs_app.command("show")
def jobs_show(job: Annotated[int, typer.Argument(help="The job's number.")], config: ConfigOption = None) -> None:
    """Show one job whole, as JSON: what it needs, what it came to, and its reports."""
    from daemon.ledger import instances, jobs, outbox

    with _ledger(load_settings(config)) as ledger, ledger.read() as connection:
        row = _job(connection, job)
        needed = jobs.needed_by(connection, job)
        here = instances.current(connection, needed)
        facts = _job_facts(row) | {
            "needs": [{"sop_instance_uid": uid, "here": uid in here} for uid in needed],
            "result": row.result,
            "reports": [
                {
                    "sop_instance_uid": report.sop_instance_uid,
                    "kind": report.kind,
                    "state": report.state,
                    "attempts": report.attempts,
                    "reason": report.reason,
                    "next_attempt": _when(report.next_attempt_at) if report.state == "queued" else None,
                    "stored": _when(report.stored_at),
                    "file": str(load_settings(config).spool.directory / report.path),
                }
                for report in outbox.of_job(connection, job)
            ],
        }
    print(json.dumps(facts, indent=2))


@jobs_app.command("retry")
def jobs_retry(
    job: Annotated[list[int], typer.Argument(help="Numbers of quarantined or failed jobs.")],
    config: ConfigOption = None,
) -> None:
    """Try again: quarantined work is read anew, a refused report is queued again."""
    from daemon.ledger import jobs

    with _ledger(load_settings(config)) as ledger:
        for number in job:
            with ledger.write() as connection:
                before = _job(connection, number).state
                after = jobs.retry(connection, number, time.time())
            hint = " (only quarantined and failed jobs can be retried)" if before == after else ""
            print(f"job {number}: {before} -> {after}{hint}")


@jobs_app.command("purge")
def jobs_purge(
    older_than_days: Annotated[float, typer.Option(min=0, help="Only jobs that ended longer ago than this.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove finished jobs, their reports' copies and the instances that nothing needs any more. Unfinished work stays."""
    from config.settings import Retention
    from daemon import retention
    from daemon.spool import Spool

    settings = load_settings(config)
    if not yes:
        typer.confirm(f"Remove everything that ended more than {older_than_days:g} days ago?", abort=True)
    days = max(older_than_days, 1e-9)
    with _ledger(settings) as ledger:
        removed = retention.forget(
            ledger, Spool(settings.spool.directory), Retention(finished_days=days, quarantined_days=days)
        )
    print(f"removed {removed} files")


@bundle_app.command("show")
def bundle_show(
    path: Annotated[Path | None, typer.Argument(help="The bundle; the service's own if not given.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print a bundle's card: what it is, what it was trained on, how good it was measured to be, and its limits."""
    from model.bundle import card

    print(card(_bundle(path, config)))


@bundle_app.command("verify")
def bundle_verify(
    path: Annotated[Path | None, typer.Argument(help="The bundle; the service's own if not given.")] = None,
    config: ConfigOption = None,
) -> None:
    """Check a bundle: manifest complete, weights unharmed."""
    bundle = _bundle(path, config)
    trained = "trained" if bundle.manifest.trained else "UNTRAINED: its numbers mean nothing"
    print(f"ok: {bundle.manifest.name} {bundle.manifest.version} ({trained}), digest {bundle.digest}")


def _bundle(path: Path | None, config: Path | None) -> Any:
    from daemon.service import open_bundle
    from model.bundle import load_bundle

    return (
        load_bundle(path, allow_untrained=True) if path else open_bundle(load_settings(config), allow_untrained=False)
    )


@contextmanager
def _ledger(settings: Settings) -> Iterator[Any]:
    from daemon.ledger import Ledger

    url = make_url(settings.ledger_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise ConfigurationError(
            f"there is no ledger at {url.database}; is this the service's settings file, and did the service ever start?"
        )
    ledger = Ledger(settings.ledger_url)
    try:
        yield ledger
    finally:
        ledger.close()


def _job(connection: Any, number: int) -> Row:
    from daemon.ledger.schema import jobs as table

    row = connection.execute(select(table).where(table.c.id == number)).one_or_none()
    if row is None:
        raise ConfigurationError(f"there is no job {number}; `mammod jobs list` shows them")
    return row


def _job_facts(row: Row) -> dict[str, Any]:
    return {
        "job": row.id,
        "state": row.state,
        "reason": row.reason,
        "source_uid": row.source_uid,
        "bundle": row.bundle,
        "attempts": row.attempts,
        "created": _when(row.created_at),
        "complete": _when(row.complete_at),
        "finished": _when(row.finished_at),
    }


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _flat(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}".replace("_", " "), value


def _kinds(text: str) -> Sequence[str]:
    from daemon.reports.kinds import KINDS

    named = [name.strip() for name in text.split(",")]
    if wrong := [name for name in named if name not in KINDS]:
        raise ConfigurationError(f"--kinds {text}: there is no kind {wrong[0]!r}; allowed: {', '.join(KINDS)}")
    return list(dict.fromkeys(named))


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ConfigurationError(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:4242")
    return host.strip("[]"), int(port)
