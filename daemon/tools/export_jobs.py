"""`mammod jobs export`: jobs with times, states and probabilities as CSV or JSON lines; no patient data."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from daemon.ledger import Ledger, outbox
from daemon.ledger.job_query import JobQuery, select_jobs
from daemon.ledger.records import JobInStudy, OutboxItem

JOB_COLUMNS = (
    "job", "state", "reason", "source_uid", "study_uid", "bundle", "attempts",
    "created", "complete", "finished", "stored", "seconds",
)  # fmt: skip
LESION_COLUMNS = ("lesion", "image_uid", "frame", "probability", "class", "box")
COLUMNS = (*JOB_COLUMNS, *LESION_COLUMNS, "reports")


def export_jobs(ledger: Ledger, query: JobQuery) -> Iterator[dict[str, Any]]:
    """Yield each selected job as a JSON-ready mapping, by number; read the ledger page by page.

    `seconds` counts from the arrival of the last object needed to the last report stored. Times are UTC.
    """
    for page in select_jobs(ledger, query):
        with ledger.read() as connection:
            reports = outbox.of_jobs(connection, [row.id for row in page])
        for row in page:
            yield _job(row, reports.get(row.id, []))


def write_json_lines(jobs: Iterator[dict[str, Any]], file: TextIO) -> int:
    """Write one JSON object per line; return the number of jobs."""
    count = 0
    for job in jobs:
        file.write(json.dumps(job) + "\n")
        count += 1
    return count


def write_csv(jobs: Iterator[dict[str, Any]], file: TextIO) -> int:
    """Write CSV (RFC 4180) with a heading and a row for each lesion; return the number of jobs.

    A job without lesions gets one row.
    """
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    count = 0
    for job in jobs:
        count += 1
        job_cells = {name: job[name] for name in JOB_COLUMNS} | {
            "reports": " ".join(report["sop_instance_uid"] for report in job["reports"])
        }
        for number, lesion in enumerate(job["lesions"] or [None], start=1):
            cells = {} if lesion is None else lesion | {"lesion": number, "box": " ".join(map(str, lesion["box"]))}
            writer.writerow(job_cells | cells)
    return count


def _job(row: JobInStudy, reports: list[OutboxItem]) -> dict[str, Any]:
    stored = [report.stored_at for report in reports if report.stored_at is not None]
    ended = max(stored, default=None)
    return {
        "job": row.id,
        "state": row.state,
        "reason": row.reason,
        "source_uid": row.source_uid,
        "study_uid": row.study_uid,
        "bundle": row.bundle,
        "attempts": row.attempts,
        "created": _iso_time(row.created_at),
        "complete": _iso_time(row.complete_at),
        "finished": _iso_time(row.finished_at),
        "stored": _iso_time(ended),
        "seconds": None if ended is None or row.complete_at is None else round(ended - row.complete_at, 3),
        "lesions": [
            {
                "image_uid": lesion["image_uid"],
                "frame": lesion["frame"],
                "probability": lesion["probability"],
                "class": "malignant" if lesion["malignant"] else "benign",
                "box": lesion["box"],
            }
            for lesion in (row.result or {}).get("lesions", ())
        ],
        "reports": [
            {"sop_instance_uid": report.sop_instance_uid, "kind": report.kind, "state": report.state}
            for report in reports
        ],
    }


def _iso_time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
