"""`mammod check` tries what it says that it tried."""

from __future__ import annotations

from pathlib import Path

from config.settings import Settings
from daemon.checks.run import Finding, deep_findings, findings
from tests.support import archive_stubs, dicomweb_stubs
from tests.support.peers.programs import free_port


def of_archive(settings: Settings) -> list[Finding]:
    return [finding for finding in findings(settings, True) if finding.subject == "archive"]


def settings(folder: Path, **archive: object) -> Settings:
    bundle = folder / "none"  # a finding of its own, and quick
    return Settings.model_validate(
        {
            "spool": {"directory": folder / "spool", "min_free": 1},
            "model": {"bundle": bundle},
            "listener": {"port": free_port(), "host": "127.0.0.1"},
            "status": {"port": free_port()},
            "archive": {"ae_title": "STUB", "timeout_s": 5, **archive},
        }
    )


def test_where_reports_go_by_web_and_the_dicom_side_are_both_tried(tmp_path: Path) -> None:
    with dicomweb_stubs.stub(lambda path: dicomweb_stubs.Answer(204)) as (url, _), archive_stubs.stub() as port:
        both = of_archive(settings(tmp_path, host="127.0.0.1", port=port, stow_url=f"{url}/studies"))
        assert [finding.good for finding in both] == [True, True]
        assert "STOW-RS" in both[0].text and "answers C-ECHO" in both[1].text
        nobody = of_archive(settings(tmp_path, host="127.0.0.1", port=free_port(), stow_url=f"{url}/studies"))
        assert [finding.good for finding in nobody] == [True, False]
        lost = of_archive(settings(tmp_path, stow_url=f"http://127.0.0.1:{free_port()}/studies"))
        assert [finding.good for finding in lost] == [False]


def test_a_token_that_cannot_be_used_is_told_before_a_report_waits(tmp_path: Path) -> None:
    (token,) = of_archive(settings(tmp_path, stow_url="http://127.0.0.1:9/x", dicomweb_token_file=tmp_path / "gone"))
    assert not token.good and "dicomweb_token_file" in token.text and "cannot be read" in token.text


def test_a_deep_check_makes_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (found,) = deep_findings(settings(tmp_path))
    assert not found.good and "does not exist" in found.text
    assert not list((tmp_path / "spool").iterdir())
