"""The service itself: `mammod serve`, `check`, `status`."""

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
from daemon.cli.options import ConfigOption, JsonOption, UntrainedOption, console, ending_for_good, open_ledger

ARCHIVE_LIMIT_S = 10.0  # for its answer: a person waits


def serve(config: ConfigOption = None, allow_untrained: UntrainedOption = False) -> None:
    """Run the service. Prints one line "ready" when it accepts associations; SIGTERM drains, SIGHUP reloads settings.

    Exit status 78: a setting or the ledger is refused, and would be again.

    Examples:

        mammod serve --config site.toml

        systemctl reload mammod
    """
    from daemon.service import Service
    from daemon.system import log

    with ending_for_good():
        settings = load_settings(config)
        log.configure(settings.log)
        log.catch_unhandled()
        Service(settings, config, allow_untrained).run()


def check(
    config: ConfigOption = None,
    allow_untrained: UntrainedOption = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Instead: compare ledger and spool, hashing every file. The service may run.")
    ] = False,
    as_json: JsonOption = False,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade",
            help="Instead: does this version take the settings and the ledger that are here? Changes nothing; "
            "exit status 78 if not.",
        ),
    ] = False,
) -> None:
    """Tell in plain words what would keep the service from working, and what to do about it.

    Each line is "ok", "!!" (it works; somebody should look at it) or "BAD".

    Exit status: 0 nothing is BAD, 1 something is, 2 the command line is wrong; with --upgrade 78 where not.

    Examples:

        mammod check --config site.toml

        mammod check --json | jq '.findings[] | select(.level != "ok")'

        mammod check --deep
    """
    from daemon.checks.finding import Finding

    if upgrade:
        with ending_for_good():
            console.print(_ledger_outlook(load_settings(config)), highlight=False, soft_wrap=True)
        return
    found: list[Finding] = []
    for finding in _findings(config, allow_untrained, deep):
        found.append(finding)
        if not as_json:
            mark, style = {"ok": ("ok ", None), "warning": ("!! ", "yellow"), "bad": ("BAD", "red")}[finding.level]
            console.print(f"{mark} {finding.subject}: {finding.text}", style=style, highlight=False, soft_wrap=True)
    good = all(finding.good for finding in found)
    if as_json:
        lines = [{"subject": one.subject, "level": one.level, "text": one.text} for one in found]
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


def _ledger_outlook(settings: Settings) -> str:
    from daemon.ledger import look

    schema = look(settings.ledger_url, settings.ledger.password_file)
    if schema.present in (None, schema.newest):
        return f"ok  settings and ledger (schema {schema.newest})"
    return f"ok  settings; the ledger's schema {schema.present} becomes {schema.newest} at the next start, for good"


def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what was received, jobs by state, reports, and whether the archive answers.

    Works while the service is down too: it says so then, and what it shows is what the ledger says.

    Exit status: 0, also while the service is down; 1 there is no ledger; 2 the command line is wrong.

    Examples:

        mammod status --config site.toml

        mammod status --json | jq .jobs.quarantined
    """
    from daemon.archive.client import Archive
    from daemon.monitoring.status_report import certificates, collect, live
    from daemon.workers.bundle_source import open_bundle, untrained_path

    settings = load_settings(config)
    limited = settings.archive.model_copy(update={"timeout_s": min(settings.archive.timeout_s, ARCHIVE_LIMIT_S)})
    with open_ledger(settings) as ledger:
        archive = Archive(limited, settings.listener.ae_title, settings.spool.directory / "incoming")
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
    table = Table(title="mammod", show_header=False, caption=state["note"])
    for key, value in _lines(state):
        table.add_row(key, value)
    console.print(table)


def _lines(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The status as lines for people: what is zero, or nothing to look at, is left out."""
    yield "service", "running" if state["running"] else "NOT RUNNING: what follows is what the ledger says"
    yield "received", f"{state['received']} instances"
    yield "jobs", _counts(state["jobs"])
    yield "reports", _counts(state["reports"])
    yield "spool", f"{state['spool_bytes'] / 2**20:.1f} MiB"
    yield "archive", "answers" if state["archive_reachable"] else f"DOES NOT ANSWER: {state['archive_problem']}"
    bundle = state["bundle"]
    if bundle is None:
        yield "bundle", "NONE that can be used; `mammod check` says why"
    else:
        trained = "trained" if bundle["trained"] else "UNTRAINED: its numbers mean nothing"
        yield "bundle", f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]}), {trained}"
    if state["rejected"]:
        yield "callers not let in", _counts(state["rejected"])
    for certificate in state["certificates"]:
        yield certificate["setting"], f"ends in {certificate['days_left']:.0f} days"
    if any((removed := state.get("removed_for_room") or {}).values()):
        yield "removed for room", _counts(removed)


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number) or "none"
