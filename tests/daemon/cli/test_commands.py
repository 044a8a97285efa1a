"""What an operator does every day: `mammod jobs`, `status`, `echo` and `send`, each where it works and
where it cannot.
"""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from config.errors import ConfigurationError, MammodError
from config.loading import load_settings
from daemon.cli.app import app
from daemon.cli.options import parse_time
from daemon.ledger import Ledger, instances, job_claims, jobs, outbox
from daemon.ledger.job_query import JobQuery, select_jobs
from daemon.workers.bundle_source import default_bundle_path
from tests.daemon.checks.test_check_faults import tls_storescp
from tests.daemon.ledger.test_transitions import IMAGE, SOURCE, report, stored
from tests.support.archive_stubs import outgoing
from tests.support.ledgers import BUNDLE, NODE, join
from tests.support.peers.archives import Orthanc, running_storescp
from tests.support.peers.certificates import Authority
from tests.support.peers.programs import free_port
from tests.support.services import write_settings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
LESIONS = [
    {"image_uid": IMAGE, "frame": 1, "box": [1.0, 2.0, 3.0, 4.0], "probability": 0.8712, "malignant": True},
    {"image_uid": IMAGE, "frame": 2, "box": [5.0, 6.0, 7.0, 8.0], "probability": 0.12, "malignant": False},
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A settings file with a ledger of four jobs: 1 done with two lesions, 2 quarantined, 3 failed, 4
    waiting; a day apart.
    """
    (tmp_path / "spool").mkdir()
    write(tmp_path)
    ledger = Ledger(f"sqlite:///{tmp_path / 'spool' / 'ledger.sqlite'}")
    join(ledger)
    for number, days in ((1, 4), (2, 3), (3, 2), (4, 1)):
        at = NOW - days * 86_400
        with ledger.write() as connection:
            instances.record(connection, stored(IMAGE, at=at))
            source = f"{SOURCE}.{number}"
            _, instance = instances.record(connection, stored(source, at=at))
            job = jobs.create(connection, instance, source, ["9.9"] if number == 4 else [IMAGE], BUNDLE, at)
            assert job == number
            for row in job_claims.claim(connection, NODE, 1, at):
                if number == 2:
                    job_claims.quarantine(connection, row, 'grid, and "quotes"', at + 1)
                else:
                    job_claims.sending(connection, row, {"lesions": LESIONS if number == 1 else []}, at + 1)
                    outbox.put(connection, job, source, [report(f"2.25.{number}")], at + 1)
                    (item,) = outbox.claim(connection, NODE, at + 1, 1)
                    if number == 1:
                        outbox.stored(connection, item.id, 0, None, at + 2.5, NODE)
                    else:
                        outbox.failed(connection, item.id, 0xA900, "refused", at + 2, NODE)
    ledger.close()
    return tmp_path / "site.toml"


def write(folder: Path, **archive: object) -> Path:
    file = folder / "site.toml"
    sections = {
        "spool": {"directory": str(folder / "spool"), "min_free": 1},
        "listener": {"port": free_port(), "host": "127.0.0.1"},
        "status": {"port": free_port()},
        "archive": {"host": "127.0.0.1", "port": free_port(), "timeout_s": 5, **archive},
    }
    write_settings(file, sections)
    return file


def mammod(site: Path, *arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments), "--config", str(site)])


def said(result: Any) -> str:
    """What an error of ours says; `daemon.cli.app.main` prints it and exits 1."""
    assert isinstance(result.exception, MammodError), result.output
    return str(result.exception)


# --- jobs -------------------------------------------------------------------------------------------------


def test_export_as_csv_has_a_row_for_each_lesion(site: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(mammod(site, "jobs", "export").stdout)))
    assert [(row["job"], row["state"], row["lesion"], row["probability"], row["class"]) for row in rows] == [
        ("1", "done", "1", "0.8712", "malignant"),
        ("1", "done", "2", "0.12", "benign"),
        ("2", "quarantined", "", "", ""),
        ("3", "failed", "", "", ""),
        ("4", "waiting", "", "", ""),
    ]
    first = rows[0]
    assert (first["source_uid"], first["study_uid"], first["bundle"]) == (f"{SOURCE}.1", "1.2.3", BUNDLE)
    assert first["created"] == "2026-11-21T12:00:00.000+00:00" and first["stored"] == "2026-11-21T12:00:02.500+00:00"
    assert first["seconds"] == "2.5" and first["reports"] == "2.25.1" and first["box"] == "1.0 2.0 3.0 4.0"
    assert rows[2]["reason"] == 'grid, and "quotes"'
    to_file = mammod(site, "jobs", "export", "--output", tmp_path / "jobs.csv")
    assert to_file.exit_code == 0 and (tmp_path / "jobs.csv").read_text().count("\n") == 6


def test_export_as_json_lines_and_what_is_chosen(site: Path) -> None:
    def numbers(*options: str) -> list[int]:
        told = mammod(site, "jobs", "export", "--format", "jsonl", *options)
        return [json.loads(line)["job"] for line in told.stdout.splitlines()]

    first = json.loads(mammod(site, "jobs", "export", "--format", "jsonl").stdout.splitlines()[0])
    assert first["lesions"][0] == {
        "image_uid": IMAGE, "frame": 1, "probability": 0.8712, "class": "malignant", "box": [1.0, 2.0, 3.0, 4.0]
    }  # fmt: skip
    assert first["reports"] == [{"sop_instance_uid": "2.25.1", "kind": "tid1500", "state": "stored"}]
    assert numbers() == [1, 2, 3, 4]
    assert numbers("--since", "2026-11-22T12:00", "--until", "2026-11-24T12:00Z") == [2, 3]
    assert numbers("--state", "failed", "--state", "waiting") == [3, 4]


def test_export_says_what_it_cannot_understand(site: Path, tmp_path: Path) -> None:
    assert "yesterday" in said(mammod(site, "jobs", "export", "--since", "yesterday"))
    assert "no such state" in said(mammod(site, "jobs", "export", "--state", "lost"))
    assert "csv and jsonl" in said(mammod(site, "jobs", "export", "--format", "xml"))
    assert "cannot be written" in said(mammod(site, "jobs", "export", "--output", tmp_path / "none" / "x.csv"))


def test_export_reads_page_by_page(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ledger.job_query.PAGE", 3)
    ledger = Ledger(f"sqlite:///{site.parent / 'spool' / 'ledger.sqlite'}")
    try:
        assert [[row.id for row in page] for page in select_jobs(ledger, JobQuery())] == [[1, 2, 3], [4]]
        assert [[row.id for row in page] for page in select_jobs(ledger, JobQuery(limit=4))] == [[1, 2, 3], [4]]
        assert [[row.id for row in page] for page in select_jobs(ledger, JobQuery(limit=2))] == [[1, 2]]
        assert [[row.id for row in page] for page in select_jobs(ledger, JobQuery(numbers=(4, 2)))] == [[2, 4]]
    finally:
        ledger.close()
    assert len(mammod(site, "jobs", "export", "--format", "jsonl").stdout.splitlines()) == 4


def test_times_and_ages() -> None:
    assert parse_time("--since", None, NOW) is None
    assert parse_time("--since", "36h", NOW) == NOW - 129_600 and parse_time("--since", "1.5d", NOW) == NOW - 129_600
    assert parse_time("--since", "2026-11-25T13:00+01:00", NOW) == NOW == parse_time("--since", "2026-11-25T12:00", NOW)
    for wrong in ("7", "7 days", "", "-3d"):
        with pytest.raises(ConfigurationError, match="--since"):
            parse_time("--since", wrong, NOW)


def test_show_names_where_a_report_lies_in_a_bucket_and_reads_the_settings_once(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMMOD_SPOOL__URL", "s3://films/mammod/")
    read: list[Path | None] = []

    def counted(path: Path | None) -> Any:
        read.append(path)
        return load_settings(path)

    monkeypatch.setattr("daemon.cli.jobs.load_settings", counted)
    (report,) = json.loads(mammod(site, "jobs", "show", 3).stdout)["reports"]
    assert report["file"] == "s3://films/mammod/2.25.3"
    assert read == [site]


def test_list_show_retry_and_purge(site: Path) -> None:
    assert [json.loads(line)["job"] for line in mammod(site, "jobs", "list", "--json").stdout.splitlines()] == [
        4,
        3,
        2,
        1,
    ]
    assert "no such state" in said(mammod(site, "jobs", "list", "--state", "lost"))
    shown = json.loads(mammod(site, "jobs", "show", 3).stdout)
    assert shown["state"] == "failed" and shown["reports"][0]["reason"] == "refused"
    assert shown["reports"][0]["file"] == str(site.parent / "spool" / "2.25.3")
    assert "there is no job 99" in said(mammod(site, "jobs", "show", 99))

    tried = mammod(site, "jobs", "retry", 2, 3)
    assert tried.exit_code == 0 and tried.stdout.splitlines() == [
        "job 2: quarantined -> ready",
        "job 3: failed -> sending",
    ]
    refused = mammod(site, "jobs", "retry", 4)
    assert refused.exit_code == 1 and "only a quarantined or failed job" in refused.stdout
    assert "there is no job 99" in said(mammod(site, "jobs", "retry", 99))

    assert mammod(site, "jobs", "delete").exit_code == 1, "not confirmed"
    purged = mammod(site, "jobs", "delete", "--yes")
    assert purged.exit_code == 0 and "deleted" in purged.stdout
    assert [json.loads(line)["job"] for line in mammod(site, "jobs", "list", "--json").stdout.splitlines()] == [4, 3, 2]


def test_old_names_of_commands_work_with_one_warning(site: Path, tmp_path: Path) -> None:
    old = mammod(site, "jobs", "purge", "--yes")
    assert old.exit_code == 0 and "deleted" in old.stdout
    assert old.stderr == "mammod: mammod jobs purge is deprecated and will be removed in 0.3; use mammod jobs delete\n"
    assert "purge" not in CliRunner().invoke(app, ["jobs", "--help"]).stdout

    bundle = ("replay", "--bundle", default_bundle_path(), "--job", 99)
    replayed = mammod(site, *bundle, "--out", tmp_path / "replay")
    assert replayed.exit_code == 1 and (tmp_path / "replay" / "index.html").exists()
    assert replayed.stderr.count("--out is deprecated") == 1 and "use --output" in replayed.stderr
    assert "deprecated" not in mammod(site, *bundle, "--output", tmp_path / "replay").stderr
    assert mammod(site, *bundle).exit_code == 2, "no folder"


def test_the_changelog_has_the_renamed_commands() -> None:
    text = (Path(__file__).parents[3] / "CHANGELOG.md").read_text()
    assert "| `mammod jobs purge` | `mammod jobs delete` |" in text
    assert "| `mammod replay --out` | `mammod replay --output` |" in text


# --- status -----------------------------------------------------------------------------------------------


def test_status_while_the_service_is_down(site: Path) -> None:
    shown = mammod(site, "status")
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    assert "NOT RUNNING" in text and "1 waiting, 1 done, 1 failed, 1 quarantined" in text
    assert "DOES NOT ANSWER" in text and "not a medical device" in text
    state = json.loads(mammod(site, "status", "--json").stdout)
    assert state["running"] is False and state["jobs"]["failed"] == 1 and state["archive_reachable"] is False


def test_status_without_a_ledger_or_with_a_wrong_file(tmp_path: Path) -> None:
    assert "there is no ledger at" in said(mammod(write(tmp_path), "status"))
    assert "name a readable TOML file" in said(mammod(tmp_path / "none.toml", "status"))


# --- echo and send ----------------------------------------------------------------------------------------


@pytest.mark.peers
def test_echo_to_the_archive_and_to_any_node(tmp_path: Path, orthanc: Orthanc) -> None:
    site = write(tmp_path, port=orthanc.dicom_port, ae_title=orthanc.aet, stow_url="http://127.0.0.1:1/studies")
    good = mammod(site, "echo")
    assert good.exit_code == 0, said(good)
    assert f"ORTHANC at 127.0.0.1:{orthanc.dicom_port} answered MAMMOD's C-ECHO (" in good.stdout
    assert mammod(site, "echo", f"127.0.0.1:{orthanc.dicom_port}", "--aet", orthanc.aet).exit_code == 0
    wrong = said(mammod(site, "echo", f"127.0.0.1:{orthanc.dicom_port}", "--aet", "OTHER"))
    assert "another AE title than OTHER" in wrong


def test_echo_says_why_not(tmp_path: Path) -> None:
    site = write(tmp_path)
    assert "nothing listens on 127.0.0.1" in said(mammod(site, "echo"))
    assert "not HOST:PORT" in said(mammod(site, "echo", "pacs"))
    assert "--tls needs certificate" in said(mammod(site, "echo", "--tls"))
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    (nowhere / "site.toml").write_text(f'[spool]\ndirectory = "{nowhere}"\n')
    assert "archive.host is not set" in said(mammod(nowhere / "site.toml", "echo"))


@pytest.mark.peers
def test_echo_by_tls(tmp_path: Path) -> None:
    ca, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "other")
    ours = ca.issue("mammod")

    def tls(authority: Authority) -> dict[str, str]:
        return {"certificate": str(ours.certificate), "key": str(ours.key), "ca": str(authority.file)}

    with tls_storescp(tmp_path / "scp", ca.issue("archive"), ca) as port:
        site = write(tmp_path, port=port, ae_title="STORESCP", tls=tls(ca))
        good = mammod(site, "echo")
        assert good.exit_code == 0 and "C-ECHO over TLS" in good.stdout
        assert mammod(site, "echo", "--no-tls").exit_code == 1
        assert mammod(site, "echo", f"127.0.0.1:{port}", "--tls", "--aet", "STORESCP").exit_code == 0
        assert "signed by a CA" in said(mammod(write(tmp_path, port=port, tls=tls(other)), "echo"))


@pytest.mark.peers
def test_send_prints_each_answer_and_says_why_not(tmp_path: Path) -> None:
    site = write(tmp_path)
    (tmp_path / "files").mkdir()
    good = outgoing(tmp_path / "files").path
    (tmp_path / "text.dcm").write_text("no DICOM")
    with running_storescp(tmp_path / "scp") as scp:
        to = ("--to", f"127.0.0.1:{scp.dicom_port}", "--aet", scp.aet)
        sent = mammod(site, "send", good, *to)
        assert (sent.exit_code, len(scp.files())) == (0, 1) and ": stored: " in sent.stdout
        mixed = mammod(site, "send", good, tmp_path / "text.dcm", *to)
        assert mixed.exit_code == 1 and "text.dcm: not sent, it is not a DICOM file" in mixed.stdout
    lost = mammod(site, "send", good, "--to", f"127.0.0.1:{free_port()}")
    assert lost.exit_code == 1 and "NOT stored" in lost.stdout and "cannot be reached" in lost.stdout
    assert "not HOST:PORT" in said(mammod(site, "send", good, "--to", "nowhere"))
