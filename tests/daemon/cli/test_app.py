"""The `mammod` command where it needs no service: errors of configuration, empty ledgers, `check`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peers.programs import free_port
from tests.support.services import ROOT, write_settings


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "mammod.toml"
    write_settings(
        file,
        {
            "listener": {"port": free_port()},
            "archive": {"host": "127.0.0.1", "port": free_port(), "timeout_s": 2},
            "spool": {"directory": str(tmp_path / "spool"), "min_free": "1 MB"},
            "status": {"port": free_port()},
        },
    )
    return file


def mammod(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_wrong_setting_is_named_before_anything_is_opened(settings: Path) -> None:
    answer = mammod("serve", "--config", str(settings), MAMMOD_LISTENER__PORT="99999")
    assert answer.returncode == 78
    assert "listener.port = '99999' (environment MAMMOD_LISTENER__PORT)" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (settings.parent / "spool").exists()


def test_no_ledger_is_said_in_plain_words(settings: Path) -> None:
    answer = mammod("status", "--config", str(settings))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "there is no ledger at" in answer.stderr


def test_check_names_what_is_wrong_and_status_is_json_then(settings: Path) -> None:
    checked = mammod("check", "--config", str(settings))
    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("BAD")] == ["BAD archive"]
    assert any("[[listener.peers]]" in line for line in lines)

    state = json.loads(mammod("status", "--json", "--config", str(settings)).stdout)
    assert state["received"] == 0
    assert state["jobs"]["waiting"] == state["reports_stored"] == state["spool_bytes"] == 0
    assert state["archive_reachable"] is False
    assert state["bundle"]["trained"] is True  # the one that comes with mammod
    gone = {"MAMMOD_MODEL__BUNDLE": str(settings.parent / "gone")}
    assert "BAD bundle" in mammod("check", "--config", str(settings), **gone).stdout
    assert json.loads(mammod("status", "--json", "--config", str(settings), **gone).stdout)["bundle"] is None
    assert not (settings.parent / "spool" / "untrained-bundle").exists(), "status makes no bundle"
