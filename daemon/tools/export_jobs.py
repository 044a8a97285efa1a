"""`mammod jobs export`: jobs with times, states and probabilities, for a spreadsheet or a program. Nothing of the patient."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from daemon.ledger import Ledger, outbox
from daemon.ledger.job_query import JobQuery, select_jobs
from daemon.ledger.records import JobInStudy, OutboxItem

OF_JOB = (
    "job", "state", "reason", "source_uid", "study_uid", "bundle", "attempts",
    "created", "complete", "finished", "stored", "seconds",
)  # fmt: skip
OF_LESION = ("lesion", "image_uid", "frame", "probability", "class", "box")
COLUMNS = (*OF_JOB, *OF_LESION, "reports")


def exported(ledger: Ledger, chosen: JobQuery) -> Iterator[dict[str, Any]]:
    """Each chosen job as a JSON-ready mapping, in the order of their numbers, read a page at a time.

    `seconds` are those from all being here to the last report being stored. Times are UTC.
    """
    for page in select_jobs(ledger, chosen):
        with ledger.read() as connection:
            of_job = outbox.of_jobs(connection, [row.id for row in page])
        for row in page:
            yield _job(row, of_job.get(row.id, []))


def write_json_lines(jobs: Iterator[dict[str, Any]], file: TextIO) -> int:
    """One JSON object a line; returns how many jobs."""
    count = 0
    for job in jobs:
        file.write(json.dumps(job) + "\n")
        count += 1
    return count


def write_csv(jobs: Iterator[dict[str, Any]], file: TextIO) -> int:
    """RFC 4180, a heading, then one row for each lesion (and one for a job without any); returns how many jobs."""
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    count = 0
    for job in jobs:
        count += 1
        of_job = {name: job[name] for name in OF_JOB} | {
            "reports": " ".join(report["sop_instance_uid"] for report in job["reports"])
        }
        for number, lesion in enumerate(job["lesions"] or [None], start=1):
            of_lesion = {} if lesion is None else lesion | {"lesion": number, "box": " ".join(map(str, lesion["box"]))}
            writer.writerow(of_job | of_lesion)
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
        "created": _when(row.created_at),
        "complete": _when(row.complete_at),
        "finished": _when(row.finished_at),
        "stored": _when(ended),
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


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
