"""Files are 0600 in directories 0700, whatever the umask; `tests/service/test_privacy.py`: a used spool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import Settings
from daemon.ledger import Ledger
from daemon.storage.spool import Spool
from daemon.workers import bundle_source


@pytest.fixture(autouse=True, params=[0o000, 0o027, 0o077], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_the_ledgers_files_and_one_that_was_open_before(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}"
    ledger = Ledger(url)
    with ledger.write():
        found = modes(tmp_path)
    assert found == {
        "ledger": 0o700, "ledger/ledger.sqlite": 0o600, "ledger/ledger.sqlite-wal": 0o600, "ledger/ledger.sqlite-shm": 0o600,
    }  # fmt: skip
    ledger.close()
    (tmp_path / "ledger" / "ledger.sqlite").chmod(0o644)
    Ledger(url).close()
    assert modes(tmp_path)["ledger/ledger.sqlite"] == 0o600


def test_the_spools_files(tmp_path: Path) -> None:
    (tmp_path / "spool" / "instances").mkdir(parents=True)
    spool = Spool(tmp_path / "spool")
    received = spool.incoming / "x.part"
    received.write_bytes(bytes(128) + b"DICM" + bytes(16))
    received.chmod(0o644)
    spool.add_instance(received, "1.2.3")
    spool.write_report("1.2.4", b"report")
    found = modes(tmp_path)
    assert {mode for path, mode in found.items() if (tmp_path / path).is_dir()} == {0o700}
    assert {mode for path, mode in found.items() if path.endswith((".dcm", ".part"))} == {0o600}


def test_an_untrained_bundle_that_the_service_makes_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(path: Path) -> None:
        path.mkdir(mode=0o755)
        path.chmod(0o755)
        (path / "weights.npz").write_bytes(b"")

    monkeypatch.setattr(bundle_source, "untrained_bundle", make)
    monkeypatch.setattr(bundle_source, "default_bundle_path", lambda: tmp_path / "none")
    bundle_source.open_bundle(Settings(spool={"directory": tmp_path / "spool"}), allow_untrained=True)
    assert modes(tmp_path / "spool") == {"untrained-bundle": 0o700, "untrained-bundle/weights.npz": 0o600}
