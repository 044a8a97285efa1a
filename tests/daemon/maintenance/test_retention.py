"""Files without a row: removed once they are old, and left to who is using them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from daemon.ledger import Ledger, instances
from daemon.maintenance.retention import ORPHAN_AFTER_S, delete_orphans
from daemon.storage.spool import Spool
from tests.support.archive_stubs import outgoing

OLD = time.time() - 2 * ORPHAN_AFTER_S


def orphan(spool: Spool, name: str = "ab.dcm") -> Path:
    file = spool.directory / "instances" / name
    file.write_bytes(b"left")
    os.utime(file, (OLD, OLD))
    return file


def test_old_orphans_are_deleted_and_young_ones_stay(spool: Spool, ledger: Ledger) -> None:
    old, young = orphan(spool), orphan(spool, "cd.dcm")
    young.touch()
    assert delete_orphans(ledger, spool) == 1
    assert not old.exists() and young.exists()


def test_a_report_renamed_while_orphans_are_looked_for(
    spool: Spool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = orphan(spool)
    listed = ["outbox/ef.17.tmp", str(old.relative_to(spool.directory))]
    monkeypatch.setattr(spool, "written_before", lambda before: listed)
    assert delete_orphans(ledger, spool) == 1


def test_an_old_orphan_that_is_received_again_stays(
    spool: Spool, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another connection's intake stores the file after it was listed as old, and has not recorded it yet."""
    received = outgoing(tmp_path)
    file = spool.absolute(spool.add_instance(received.path, received.sop_instance_uid).path)
    os.utime(file, (OLD, OLD))
    known = instances.paths

    def placed_meanwhile(connection: object) -> set[str]:
        spool.add_instance(received.path, received.sop_instance_uid)
        return known(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(instances, "paths", placed_meanwhile)
    assert delete_orphans(ledger, spool) == 0
    assert file.exists()
