"""`mammod jobs`: look at jobs and act on them."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from sqlalchemy import Row, select

from config.errors import ConfigurationError
from config.loading import load_settings
from daemon.cli.options import (
    ConfigOption,
    SinceOption,
    UntilOption,
    console,
    open_ledger,
    states_of,
    time_of,
    when,
)

app = typer.Typer(help="Look at jobs and act on them.", no_args_is_help=True)


@app.command("list")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first: one lesion object under one bundle each.

    Exit status: 0, also where there is none; 1 there is no ledger or no such state; 2 the command line is wrong.

    Examples:

        mammod jobs list --state quarantined

        mammod jobs list --limit 1000 --json | jq .reason
    """
    from daemon.ledger.schema import jobs as table

    states_of("--state", [] if state is None else [state])
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state)
    with open_ledger(load_settings(config)) as ledger, ledger.read() as connection:
        rows = connection.execute(query).all()
    if as_json:
        for row in rows:
            print(json.dumps(_job_facts(row)))
        return
    shown = Table("job", "state", "created", "lesion object", "reason", title=f"{len(rows)} jobs")
    for row in rows:
        shown.add_row(str(row.id), row.state, when(row.created_at), row.source_uid, row.reason or "")
    console.print(shown)


@app.command("show")
def jobs_show(job: Annotated[int, typer.Argument(help="The job's number.")], config: ConfigOption = None) -> None:
    """Show one job whole, as JSON: what it needs, what it came to, and its reports.

    Exit status: 0, or 1 where there is no such job or no ledger.

    Examples:

        mammod jobs show 17
    """
    from daemon.ledger import instances, jobs, outbox

    settings = load_settings(config)
    place = settings.spool.url or settings.spool.directory
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
                    "next_attempt": when(report.next_attempt_at) if report.state == "queued" else None,
                    "stored": when(report.stored_at),
                    "file": f"{str(place).rstrip('/')}/{report.path}",
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
    """Try again: quarantined work is read anew, a refused report is queued again, a damaged one is written again.

    Exit status: 0 all are tried again, 1 one could not be or does not exist.

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
                print(f"job {number}: a report of it is damaged, it is written again")
                continue
            before, after = ledger.transact(partial(_retried, number))
            refused += before == after
            hint = (
                " (only quarantined and failed jobs can be retried, or one whose report is damaged)"
                if before == after
                else ""
            )
            print(f"job {number}: {before} -> {after}{hint}")
    raise typer.Exit(1 if refused else 0)


@app.command("purge")
def jobs_purge(
    older_than_days: Annotated[float, typer.Option(min=0, help="Only jobs that ended longer ago than this.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove finished jobs, their reports' copies and the instances that nothing needs any more. Unfinished work stays.

    What the archive has stays there. Exit status: 0, or 1 where you said no or there is no ledger.

    Examples:

        mammod jobs purge --older-than-days 7

        mammod jobs purge --older-than-days 7 --yes
    """
    from config.settings import Retention
    from daemon.maintenance import retention
    from daemon.storage.spool import open_spool

    settings = load_settings(config)
    if not yes:
        typer.confirm(f"Remove everything that ended more than {older_than_days:g} days ago?", abort=True)
    days = max(older_than_days, 1e-9)
    with open_ledger(settings) as ledger:
        removed = retention.delete_expired(
            ledger, open_spool(settings.spool), Retention(finished_days=days, quarantined_days=days)
        )
    print(f"removed {removed} files")


def _retried(number: int, connection: Any) -> tuple[str, str]:
    """The job's state before and after."""
    from daemon.ledger import jobs

    return _job(connection, number).state, jobs.retry(connection, number, time.time())


@app.command("export")
def jobs_export(
    output: Annotated[Path | None, typer.Option(help="The file to write; standard output if not given.")] = None,
    format: Annotated[
        str, typer.Option(help="csv: a row for each lesion; jsonl: one JSON object a line for each job.")
    ] = "csv",
    since: SinceOption = None,
    until: UntilOption = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be given more than once.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write jobs with times, states, probabilities and bundle to a file or a pipe. UIDs, and nothing of the patient.

    Jobs are read a page at a time: any number of them needs no more memory. Times are UTC; "seconds" are those from all
    images being here to the report being stored.

    Exit status: 0; 1 the file cannot be written, or a time or state cannot be understood; 2 the command line is wrong.

    Examples:

        mammod jobs export --since 7d --output week.csv

        mammod jobs export --state quarantined --state failed --format jsonl | jq .reason
    """
    from daemon.ledger.job_query import JobQuery
    from daemon.tools.export_jobs import exported, write_csv, write_json_lines

    write = {"csv": write_csv, "jsonl": write_json_lines}.get(format)
    if write is None:
        raise ConfigurationError(f"--format {format}: allowed are csv and jsonl")
    now = time.time()
    chosen = JobQuery(
        time_of("--since", since, now), time_of("--until", until, now), states_of("--state", list(state or ()))
    )
    with open_ledger(load_settings(config)) as ledger:
        if output is None:
            write(exported(ledger, chosen), sys.stdout)
            return
        try:
            with output.open("w", encoding="utf-8", newline="") as file:
                count = write(exported(ledger, chosen), file)
        except OSError as error:
            raise ConfigurationError(
                f"--output {output} cannot be written: {error.strerror}; name another file"
            ) from error
    print(f"{count} jobs written to {output}", file=sys.stderr)


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
        "created": when(row.created_at),
        "complete": when(row.complete_at),
        "finished": when(row.finished_at),
    }
