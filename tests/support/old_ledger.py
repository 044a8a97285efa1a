"""A ledger as the first version of mammod left it (schema 0001), with rows, for tests of upgrades."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from daemon.ledger.database import MIGRATIONS

# By hand, of the columns of 0001_first_schema.py: an image and a segmentation, a finished job, one whose
# report waits.
ROWS = {
    "instances": [
        {
            "id": number, "sop_instance_uid": uid, "sop_class_uid": sop_class, "study_uid": "1.2.3", "series_uid": "1.2.3.4",
            "transfer_syntax_uid": "1.2.840.10008.1.2.1", "digest": str(number) * 64, "size": 1000 + number,
            "path": f"instances/{number}.dcm", "state": "current", "calling_ae": "MODALITY", "received_at": 100.5 + number,
            "times_received": number,
        }
        for number, uid, sop_class in [
            (1, "1.2.3.1", "1.2.840.10008.5.1.4.1.1.1.2"),
            (2, "1.2.3.2", "1.2.840.10008.5.1.4.1.1.66.4"),
            (3, "1.2.3.3", "1.2.840.10008.5.1.4.1.1.66.4"),
        ]
    ],
    "jobs": [
        {
            "id": number, "instance_id": number + 1, "source_uid": f"1.2.3.{number + 1}", "bundle": "b" * 64, "state": state,
            "reason": None, "revision": 0, "attempts": 1, "not_before": 0.0, "created_at": 101.0, "complete_at": 102.0,
            "finished_at": finished, "result": '{"lesions": [{"probability": 0.25}]}',
        }
        for number, state, finished in [(1, "done", 103.0), (2, "sending", None)]
    ],
    "needs": [{"job_id": 1, "sop_instance_uid": "1.2.3.1"}, {"job_id": 2, "sop_instance_uid": "1.2.3.1"}],
    "outbox": [
        {
            "id": number, "job_id": number, "source_uid": f"1.2.3.{number + 1}", "kind": "tid1500",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.88.34", "sop_instance_uid": f"2.25.{number}", "study_uid": "1.2.3",
            "series_uid": f"2.25.{number}.1", "transfer_syntax_uid": "1.2.840.10008.1.2.1", "path": f"reports/{number}.dcm",
            "size": 10, "state": state, "status": status, "reason": None, "attempts": 1, "next_attempt_at": 105.0,
            "created_at": 102.5, "stored_at": stored,
        }
        for number, state, status, stored in [(1, "stored", 0, 103.0), (2, "queued", None, None)]
    ],
}  # fmt: skip


def write_old_ledger(file: Path) -> None:
    """Makes `file` a ledger at schema 0001 that holds `ROWS`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    with sqlite3.connect(file) as ledger:
        for table, rows in ROWS.items():
            for row in rows:
                names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
                ledger.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)


def kept(file: Path) -> dict[str, list[dict[str, object]]]:
    """Of the ledger in `file`: what `ROWS` has, its columns only."""
    with sqlite3.connect(file) as ledger:
        ledger.row_factory = sqlite3.Row
        return {
            table: [
                {name: row[name] for name in rows[0]} for row in ledger.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            ]
            for table, rows in ROWS.items()
        }


def schema(file: Path) -> str:
    with sqlite3.connect(file) as ledger:
        return str(ledger.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def set_schema(file: Path, revision: str) -> None:
    with sqlite3.connect(file) as ledger:
        ledger.execute("UPDATE alembic_version SET version_num = ?", [revision])
