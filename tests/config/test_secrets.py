"""The password in `ledger.url` and a token in a URL of `archive` are in no message and no representation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.errors import ConfigurationError
from config.loading import load_settings
from config.settings import Settings
from daemon.errors import LedgerError
from daemon.ledger import Ledger
from tests.support.services import write_settings

SECRET = "hunter2-PLANTED"
URLS = {
    "ledger": {"url": f"postgresql+psycopg://mammod:{SECRET}@127.0.0.1:1/mammod"},
    "archive": {
        "stow_url": f"https://user:{SECRET}@pacs.example.org/dicom-web?token={SECRET}",
        "dicomweb_url": f"https://user:{SECRET}@pacs.example.org/dicom-web?token={SECRET}",
    },
}


def test_settings_are_shown_without_them() -> None:
    assert SECRET not in repr(Settings(**URLS)) + str(Settings(**URLS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ledger": f"postgresql://mammod:{SECRET}@db/mammod"},
        {"ledger": {"url": [f"postgresql://mammod:{SECRET}@db/mammod"]}},
        {"ledger": {"uri": f"postgresql://mammod:{SECRET}@db/mammod"}},
        {"archive": {"stow_url": [f"https://pacs/?token={SECRET}"]}},
    ],
)
def test_a_wrong_setting_is_named_without_them(wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for section, value in wrong.items():
        text = value if isinstance(value, str) else json.dumps(value)
        monkeypatch.setenv(f"MAMMOD_{section.upper()}", text)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert SECRET not in str(refused.value)
    assert any(section in str(refused.value) for section in wrong)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql//mammod:{SECRET}@db/mammod",
        f"postgresql://mammod:{SECRET}@db:port/mammod",
        f"nosuch://mammod:{SECRET}@db/mammod",
        f"postgresql+psycopg://mammod:{SECRET}@127.0.0.1:1/mammod",
    ],
)
def test_a_ledger_that_cannot_be_opened_is_named_without_them(url: str) -> None:
    with pytest.raises(LedgerError) as refused:
        Ledger(url)
    assert SECRET not in str(refused.value)


def test_check_shows_where_reports_go_without_them(tmp_path: Path) -> None:
    from daemon.checks.run import findings

    file = tmp_path / "mammod.toml"
    write_settings(file, {"spool": {"directory": str(tmp_path / "spool"), "min_free": "1 MB"}, **URLS})
    said = [f"{finding.subject} {finding.text}" for finding in findings(load_settings(file), allow_untrained=False)]
    assert any("pacs.example.org" in line for line in said)
    assert any(line.startswith("ledger ") for line in said)
    assert SECRET not in "\n".join(said)
