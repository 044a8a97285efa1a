"""`mammod serve`, `mammod check` and `mammod status`: run the service, test it, show its state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from config.errors import ConfigurationError, MammodError
from config.loading import load_settings
from config.settings import Settings
from daemon.cli.options import (
    ConfigOption,
    JsonOption,
    UntrainedOption,
    configuration_errors_exit_78,
    console,
    open_ledger,
)

MAX_ARCHIVE_TIMEOUT_S = 10.0  # a person is waiting


def serve(config: ConfigOption = None, allow_untrained: UntrainedOption = False) -> None:
    """Run the service; print "ready" when it accepts associations. SIGTERM drains, SIGHUP reloads settings.

    Exit status: 0, or 78 if a setting or the ledger is refused (a restart would not help).

    Examples:

        mammod serve --config site.toml

        systemctl reload mammod
    """
    from daemon.service import Service
    from daemon.system import log

    with configuration_errors_exit_78():
        settings = load_settings(config)
        log.configure(settings.log)
        log.catch_unhandled()
        Service(settings, config, allow_untrained).run()


def check(
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Only compare ledger and spool, hashing every file. The service may be running."),
    ] = False,
    as_json: JsonOption = False,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade",
            help="Only test whether this version accepts the settings and the ledger. Changes nothing; "
            "exit status 78 if it does not.",
        ),
    ] = False,
) -> None:
    """Report in plain words what would prevent the service from working, and what to do.

    Each line starts with "ok", "!!" (a warning) or "BAD".

    Exit status: 0 nothing is BAD, 1 something is, 2 wrong command line; 78 if --upgrade finds a problem.

    Examples:

        mammod check --config site.toml

        mammod check --json | jq '.findings[] | select(.level != "ok")'

        mammod check --deep
    """
    from daemon.checks.finding import Finding

    if upgrade:
        with configuration_errors_exit_78():
            console.print(_upgrade_outlook(load_settings(config)), highlight=False, soft_wrap=True)
        return
    reported: list[Finding] = []
    for finding in _findings(config, allow_untrained, deep):
        reported.append(finding)
        if not as_json:
            mark, style = {"ok": ("ok ", None), "warning": ("!! ", "yellow"), "bad": ("BAD", "red")}[finding.level]
            console.print(f"{mark} {finding.subject}: {finding.text}", style=style, highlight=False, soft_wrap=True)
    good = all(finding.good for finding in reported)
    if as_json:
        lines = [{"subject": finding.subject, "level": finding.level, "text": finding.text} for finding in reported]
        print(json.dumps({"good": good, "findings": lines}, indent=2))
    raise typer.Exit(0 if good else 1)


def _findings(config: Path | None, allow_untrained: bool, deep: bool) -> Iterator[Any]:
    from daemon.checks.finding import Finding
    from daemon.checks.run import deep_findings, findings

    try:
        settings = load_settings(config)
    except ConfigurationError as error:
        yield from (Finding("settings", False, line) for line in str(error).splitlines())
        return
    yield from deep_findings(settings) if deep else findings(settings, allow_untrained)


def _upgrade_outlook(settings: Settings) -> str:
    from daemon.ledger import look

    schema = look(settings.ledger_url, settings.ledger.password_file)
    if schema.present in (None, schema.newest):
        return f"ok  settings and ledger (schema {schema.newest})"
    return f"ok  settings; the ledger's schema {schema.present} becomes {schema.newest} at the next start, irreversibly"


def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show instances received, jobs by state, reports, and whether the archive answers.

    If the service is not running, the status says so and shows the ledger alone.

    Exit status: 0, even if the service is not running; 1 no ledger; 2 wrong command line.

    Examples:

        mammod status --config site.toml

        mammod status --json | jq .jobs.quarantined
    """
    from daemon.archive.client import Archive
    from daemon.monitoring.status_report import certificates, collect, live
    from daemon.workers.bundle_source import open_bundle, untrained_path

    settings = load_settings(config)
    limited = settings.archive.model_copy(update={"timeout_s": min(settings.archive.timeout_s, MAX_ARCHIVE_TIMEOUT_S)})
    with open_ledger(settings) as ledger:
        archive = Archive(limited, settings.listener.ae_title, settings.spool.directory / "incoming")
        try:
            # `status` must not create the untrained bundle.
            exists = settings.model.bundle is not None or untrained_path(settings).exists()
            bundle = open_bundle(settings, allow_untrained=exists)
        except MammodError:
            bundle = None
        state = collect(ledger, archive, bundle, live(settings.status))
    state["certificates"] = certificates(settings)
    if as_json:
        print(json.dumps(state, indent=2))
        return
    table = Table(title="mammod", show_header=False, caption=state["note"])
    for key, value in _lines(state):
        table.add_row(key, value)
    console.print(table)


def _lines(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the status as lines for people, without zero counts."""
    yield "service", "running" if state["running"] else "NOT RUNNING: the rest is from the ledger"
    yield "received", f"{state['received']} instances"
    yield "jobs", _counts(state["jobs"])
    yield "reports", _counts(state["reports"])
    yield "spool", f"{state['spool_bytes'] / 2**20:.1f} MiB"
    yield "archive", "answers" if state["archive_reachable"] else f"DOES NOT ANSWER: {state['archive_problem']}"
    bundle = state["bundle"]
    if bundle is None:
        yield "bundle", "NONE usable; `mammod check` says why"
    else:
        trained = "trained" if bundle["trained"] else "UNTRAINED: its results mean nothing"
        yield "bundle", f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]}), {trained}"
    if state["rejected"]:
        yield "callers rejected", _counts(state["rejected"])
    for certificate in state["certificates"]:
        yield certificate["setting"], f"expires in {certificate['days_left']:.0f} days"
    if any((evicted := state.get("removed_for_room") or {}).values()):
        yield "deleted to free space", _counts(evicted)


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number) or "none"
