"""`mammod replay` beside a running service: compared under another bundle, kept in a folder, and nothing of
it sent.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import delete
from typer.testing import CliRunner

from config.errors import ConfigurationError
from daemon.cli.app import app
from daemon.ledger import Ledger
from daemon.ledger.schema import instances
from model.errors import BundleError
from tests.support import launch
from tests.support.cases import make_case
from tests.support.fork_server import run_forked
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dciodvfy, dcmsend, dsr2html
from tests.support.services import Service

pytestmark = pytest.mark.peers


def other_bundle(bundle: Path, path: Path, **changes: Any) -> Path:
    """The same weights with another manifest: another identity."""
    shutil.copytree(bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))
    return path


def mammod(service: Service, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = dict(os.environ) | {"MAMMOD_TEST_ENGINE": "stand-in"} | environment
    return run_forked(launch.main, *arguments, "--config", service.settings, environment=surroundings)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def probabilities(dataset: Dataset) -> list[float]:
    """The probabilities of cancer (111047, DCM) of a report, in per cent."""
    found = []
    for item in dataset.get("ContentSequence", ()):
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "111047":
            found.append(float(item.MeasuredValueSequence[0].NumericValue))
        found += probabilities(item)
    return found


def test_finished_jobs_are_replayed_under_another_bundle_and_nothing_is_sent(
    new_service: Callable[..., Service], storescp: StoreSCP, untrained: Path, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port))
    service.start()
    cases = [make_case(tmp_path / "cases", number) for number in (1, 2, 3)]
    for case in cases:
        dcmsend(case.files, service.host, service.port, service.aet)
    service.wait_jobs("done", "done", "done")
    gone = str(cases[2].image.SOPInstanceUID)
    forget(service, gone)

    jobs, outbox, sent = service.jobs(), service.outbox(), storescp.files()
    old_reports = {row.path: (service.spool / row.path).read_bytes() for row in outbox}
    lesions = {job.id: job.result["lesions"][0] for job in jobs}
    # Another crop gives other pixels; the stand-in's threshold turns every class over.
    bundle = other_bundle(untrained, tmp_path / "next", version="2.0", crop={"kind": "pixels", "side_px": 100})
    out = tmp_path / "replay"
    threshold = "0" if lesions[1]["probability"] < 0.5 else "1.1"
    pids = tmp_path / "pids"
    pids.mkdir()
    arguments = ("replay", "--bundle", bundle, "--output", out, "--allow-untrained")
    surroundings = {"MAMMOD_TEST_ENGINE": "stand-in", "MAMMOD_TEST_THRESHOLD": threshold, "MAMMOD_TEST_PIDS": str(pids)}
    # A program of its own: processes of a fork server would not inherit its priority.
    program = [sys.executable, "-m", "tests.support.launch", *map(str, arguments), "--config", str(service.settings)]
    first = subprocess.run(program, capture_output=True, text=True, env=os.environ | surroundings, timeout=240)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "jobs replayed: 2 of 3" in first.stdout and "UNTRAINED" in first.stdout
    assert [file.read_text() for file in pids.iterdir()] == ["19"], "the lowest priority"

    # What could not be is named with its reason.
    (missing,) = table(out / "not-replayed.csv")
    assert missing["job"] == "3" and gone in missing["reason"] and "retention" in missing["reason"]
    assert gone in first.stdout
    # The old side is the ledger's, the new side what `mammod classify` says of the same files.
    rows = table(out / "comparison.csv")
    assert [row["job"] for row in rows] == ["1", "2"]
    told = mammod(
        service, "classify", *cases[0].files, *cases[1].files, "--json", "--output", tmp_path / "by-hand",
        "--allow-untrained", MAMMOD_MODEL__BUNDLE=str(bundle),
    )  # fmt: skip
    by_hand = {
        lesion["image_uid"]: lesion["probability"]
        for source in json.loads(told.stdout)["lesion_objects"]
        for lesion in source["lesions"]
    }
    for row in rows:
        old, new = float(row["old_probability"]), float(row["new_probability"])
        assert old == lesions[int(row["job"])]["probability"] and row["old_bundle"] == jobs[0].bundle
        assert new == pytest.approx(by_hand[row["image_uid"]], abs=1e-4) and new != old
        assert float(row["difference"]) == pytest.approx(new - old, abs=1e-4)
        classes = ["benign", "malignant"] if threshold == "0" else ["malignant", "benign"]
        assert [row["old_class"], row["new_class"]] == classes and row["flip"] == " to ".join(classes)
    assert f"class changed: 2 {rows[0]['flip']}" in first.stdout
    page = (out / "index.html").read_text()
    assert page.count("<circle") == 2 and "not a medical device" in page and gone in page

    # The reports are valid, say what the table says, and can never be taken for those of the service.
    for row in rows:
        report = out / row["reports"]
        assert dciodvfy(report) == []
        dataset = dcmread(report)
        assert probabilities(dataset) == [pytest.approx(100 * float(row["new_probability"]), abs=0.02)]
        assert dataset.SOPInstanceUID not in sent
        assert "RESEARCH USE ONLY" in dsr2html(report)

    # Nothing was sent, and ledger and old reports are as they were.
    assert service.jobs() == jobs and service.outbox() == outbox
    assert {path: (service.spool / path).read_bytes() for path in old_reports} == old_reports
    assert storescp.files().keys() == sent.keys()

    # Ended half-way through a line: what is whole is not done again, the rest is.
    lines = (out / "replay.jsonl").read_text().splitlines(keepends=True)
    (out / "replay.jsonl").write_text(lines[0] + lines[1][:40])
    (out / rows[1]["reports"]).unlink()
    kept = (out / rows[0]["reports"]).stat().st_mtime_ns
    again = mammod(service, *arguments, "--job", 1, "--job", 2, MAMMOD_TEST_THRESHOLD=threshold)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 2 jobs were replayed earlier" in again.stdout and "jobs replayed: 2 of 2" in again.stdout
    assert table(out / "comparison.csv") == rows
    assert (out / rows[0]["reports"]).stat().st_mtime_ns == kept and (out / rows[1]["reports"]).exists()

    # Another bundle does not mix into the same folder.
    third = other_bundle(untrained, tmp_path / "third", version="3.0")
    by_config = ["--bundle", str(third), "--config", str(service.settings)]
    refused = CliRunner().invoke(app, ["replay", *by_config, "--output", str(out), "--allow-untrained"])
    assert isinstance(refused.exception, ConfigurationError) and "holds a replay under bundle" in str(refused.exception)
    untold = CliRunner().invoke(app, ["replay", *by_config, "--output", str(tmp_path / "no")])
    assert isinstance(untold.exception, BundleError) and "is untrained" in str(untold.exception)
    assert service.stop() == 0


def forget(service: Service, sop_instance_uid: str) -> None:
    """Remove an image as retention does, row and file."""
    ledger = Ledger(f"sqlite:///{service.spool / 'ledger.sqlite'}")
    try:
        (row,) = [row for row in service.instances() if row.sop_instance_uid == sop_instance_uid]
        with ledger.write() as connection:
            connection.execute(delete(instances).where(instances.c.id == row.id))
        (service.spool / row.path).unlink()
    finally:
        ledger.close()
