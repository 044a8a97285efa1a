"""`mammod jobs`: list, show, retry, delete and export jobs."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from config.errors import ConfigurationError
from config.loading import load_settings
from daemon.cli.options import (
    ConfigOption,
    SinceOption,
    UntilOption,
    console,
    iso_time,
    open_ledger,
    parse_states,
    parse_time,
    warn_renamed,
)

if TYPE_CHECKING:
    from daemon.ledger.records import Job

app = typer.Typer(help="List, show, retry, delete and export jobs.", no_args_is_help=True)


@app.command("list")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many jobs, newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first; a job is one lesion object under one bundle.

    Exit status: 0, even if there are no jobs; 1 no ledger or no such state; 2 wrong command line.

    Examples:

        mammod jobs list --state quarantined

        mammod jobs list --limit 1000 --json | jq .reason
    """
    from daemon.ledger import jobs

    parse_states("--state", [] if state is None else [state])
    with open_ledger(load_settings(config)) as ledger, ledger.read() as connection:
        rows = jobs.newest(connection, limit, state)
    if as_json:
        for row in rows:
            print(json.dumps(_job_facts(row)))
        return
    shown = Table("job", "state", "created", "lesion object", "reason", title=f"{len(rows)} jobs")
    for row in rows:
        shown.add_row(str(row.id), row.state, iso_time(row.created_at), row.source_uid, row.reason or "")
    console.print(shown)


@app.command("show")
def jobs_show(job: Annotated[int, typer.Argument(help="The job's number.")], config: ConfigOption = None) -> None:
    """Show everything about one job as JSON: the images it needs, its result and its reports.

    Exit status: 0, or 1 if there is no such job or no ledger.

    Examples:

        mammod jobs show 17
    """
    from daemon.ledger import instances, jobs, outbox

    settings = load_settings(config)
    spool = settings.spool.url or settings.spool.directory
    with open_ledger(settings) as ledger, ledger.read() as connection:
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
                    "next_attempt": iso_time(report.next_attempt_at) if report.state == "queued" else None,
                    "stored": iso_time(report.stored_at),
                    "file": f"{str(spool).rstrip('/')}/{report.path}",
                }
                for report in outbox.of_job(connection, job)
            ],
        }
    print(json.dumps(facts, indent=2))


@app.command("retry")
def jobs_retry(
    job: Annotated[list[int], typer.Argument(help="Numbers of quarantined or failed jobs.")],
    config: ConfigOption = None,
) -> None:
    """Retry jobs: read a quarantined object again, queue a refused report again, rewrite a damaged one.

    Exit status: 0 all are retried, 1 one cannot be retried or does not exist.

    Examples:

        mammod jobs retry 17 18

        mammod jobs list --state failed --json | jq .job | xargs mammod jobs retry
    """
    from daemon.maintenance.damaged_reports import rewrite_damaged_reports
    from daemon.storage.spool import open_spool

    refused = 0
    settings = load_settings(config)
    with open_ledger(settings) as ledger:
        spool = open_spool(settings.spool)
        for number in job:
            if rewrite_damaged_reports(ledger, spool, number, time.time()):
                print(f"job {number}: a damaged report will be rewritten")
                continue
            before, after = ledger.transact(partial(_retry, number))
            refused += before == after
            hint = (
                " (only a quarantined or failed job, or one with a damaged report, can be retried)"
                if before == after
                else ""
            )
            print(f"job {number}: {before} -> {after}{hint}")
    raise typer.Exit(1 if refused else 0)


OlderThanOption = Annotated[float, typer.Option(min=0, help="Only jobs that ended longer ago than this.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@app.command("purge", hidden=True)
def jobs_purge(older_than_days: OlderThanOption = 0, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Run `mammod jobs delete`, the new name of this command."""
    warn_renamed("mammod jobs purge", "mammod jobs delete")
    jobs_delete(older_than_days, yes, config)


@app.command("delete")
def jobs_delete(older_than_days: OlderThanOption = 0, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Delete finished jobs, the copies of their reports, and instances no longer needed.

    Unfinished work and everything in the archive is kept.

    Exit status: 0, or 1 if you did not confirm or there is no ledger.

    Examples:

        mammod jobs delete --older-than-days 7

        mammod jobs delete --older-than-days 7 --yes
    """
    from config.settings import Retention
    from daemon.maintenance import retention
    from daemon.storage.spool import open_spool

    settings = load_settings(config)
    if not yes:
        typer.confirm(f"Delete everything that ended more than {older_than_days:g} days ago?", abort=True)
    days = max(older_than_days, 1e-9)
    with open_ledger(settings) as ledger:
        deleted = retention.delete_expired(
            ledger, open_spool(settings.spool), Retention(finished_days=days, quarantined_days=days)
        )
    print(f"deleted {deleted} files")


def _retry(number: int, connection: Any) -> tuple[str, str]:
    """Retry the job if it can be retried; return its state before and after."""
    from daemon.ledger import jobs

    return _job(connection, number).state, jobs.retry(connection, number, time.time())


@app.command("export")
def jobs_export(
    output: Annotated[Path | None, typer.Option(help="The file to write; standard output if not given.")] = None,
    format: Annotated[
        str, typer.Option(help="csv: one row for each lesion; jsonl: one JSON object for each job.")
    ] = "csv",
    since: SinceOption = None,
    until: UntilOption = None,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write jobs with times, states, probabilities and bundle to a file or a pipe; no patient data.

    Jobs are read page by page, so memory does not grow with their number. Times are UTC; "seconds" counts
    from the arrival of the last object needed to the last report stored.

    Exit status: 0; 1 the file cannot be written, or a time or state is invalid; 2 wrong command line.

    Examples:

        mammod jobs export --since 7d --output week.csv

        mammod jobs export --state quarantined --state failed --format jsonl | jq .reason
    """
    from daemon.ledger.job_query import JobQuery
    from daemon.tools.export_jobs import export_jobs, write_csv, write_json_lines

    write = {"csv": write_csv, "jsonl": write_json_lines}.get(format)
    if write is None:
        raise ConfigurationError(f"--format {format}: allowed are csv and jsonl")
    now = time.time()
    query = JobQuery(
        since=parse_time("--since", since, now),
        until=parse_time("--until", until, now),
        states=parse_states("--state", list(state or ())),
    )
    with open_ledger(load_settings(config)) as ledger:
        if output is None:
            write(export_jobs(ledger, query), sys.stdout)
            return
        try:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = write(export_jobs(ledger, query), file)
        except OSError as error:
            raise ConfigurationError(
                f"--output {output} cannot be written: {error.strerror}; name another file"
            ) from error
    print(f"{count} jobs written to {output}", file=sys.stderr)


def _job(connection: Any, number: int) -> Job:
    from daemon.ledger import jobs

    row = jobs.by_id(connection, number)
    if row is None:
        raise ConfigurationError(f"there is no job {number}; list the jobs: `mammod jobs list`")
    return row


def _job_facts(row: Job) -> dict[str, Any]:
    return {
        "job": row.id,
        "state": row.state,
        "reason": row.reason,
        "source_uid": row.source_uid,
        "bundle": row.bundle,
        "attempts": row.attempts,
        "created": iso_time(row.created_at),
        "complete": iso_time(row.complete_at),
        "finished": iso_time(row.finished_at),
    }
