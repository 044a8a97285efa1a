"""Placing received files in the spool's directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.dicom.part10 import part_10_start
from daemon.storage import filesystem
from daemon.storage.spool import Spool

UID = "1.2.3"
CONTENT = part_10_start("1.2.840.10008.5.1.4.1.1.1.2", UID, "1.2.840.10008.1.2.1") + b"a data set" * 1000


def received(spool: Spool, name: str = "one.part") -> Path:
    path = spool.incoming / name
    path.write_bytes(CONTENT)
    return path


def test_half_a_file_left_by_a_power_cut_is_replaced(spool: Spool) -> None:
    """The name is given before the content is synced, so a file without a row may be cut; a resend heals."""
    placed = spool.add_instance(received(spool), UID)
    final = spool.absolute(placed.path)
    final.unlink()
    final.write_bytes(CONTENT[:1000])
    assert spool.add_instance(received(spool, "two.part"), UID) == placed
    assert final.read_bytes() == CONTENT
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_placing_the_same_file_twice_makes_it_young(spool: Spool) -> None:
    path = received(spool)
    final = spool.absolute(spool.add_instance(path, UID).path)
    os.utime(final, (1, 1))
    spool.add_instance(path, UID)
    assert final.samefile(path)
    assert final.stat().st_mtime > 1_000_000
    assert len(list(final.parent.iterdir())) == 1


def test_a_file_that_is_gone_is_not_looked_for_again_and_again(spool: Spool) -> None:
    path = received(spool)
    path.rename(path.with_name("elsewhere.part"))
    with pytest.raises(FileNotFoundError):
        filesystem.link(path, spool.absolute("instances/ab/abc.dcm"))


def test_a_folder_that_somebody_removed_is_made_again(spool: Spool) -> None:
    final = spool.absolute(spool.add_instance(received(spool), UID).path)
    final.unlink()
    final.parent.rmdir()
    spool.add_instance(received(spool), UID)
    assert final.read_bytes() == CONTENT and final.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("syncs_names", [False, True])
def test_the_name_is_synced_with_the_content(syncs_names: bool, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit of the file system's journal, not two: the name exists when the content is synced."""
    path = received(spool)
    synced: list[tuple[str, int]] = []

    def sync(what: Path) -> int:
        synced.append((what.name, path.stat().st_nlink))
        return what.stat().st_size

    monkeypatch.setattr(filesystem, "sync", sync)
    spool.syncs_names = syncs_names  # else as the file system is that the test runs on
    placed = spool.add_instance(path, UID)
    folder = [] if syncs_names else [(Path(placed.path).parent.name, 2)]
    assert synced == [("one.part", 2), *folder]
