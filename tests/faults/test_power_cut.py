"""A power cut right after an instance was added: the spool's disk then has the file under its name.

The disk is a file that is mounted; a copy of it has what has reached the disk, and nothing of what waits in
the system's memory.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.storage.filesystem import SYNCS_NAMES, file_system_of
from daemon.storage.spool import Spool
from tests.support.peers.programs import program

SIZE = {"ext4": 64 << 20, "xfs": 320 << 20}  # bytes; XFS takes no less
CONTENT = os.urandom(1_700_000)


@pytest.fixture(params=SYNCS_NAMES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted file system and the file that is its disk."""
    with _new_disk(tmp_path, request.param) as (folder, image):
        yield folder, image


@contextmanager
def _new_disk(tmp_path: Path, system: str, *options: str) -> Iterator[tuple[Path, Path]]:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("mounting a file system needs root and loop devices")
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE[system])
    subprocess.run([program(f"mkfs.{system}"), "-q", *options, str(image)], check=True)
    with _mounted(image, tmp_path / "mounted", "loop") as folder:
        assert file_system_of(folder) == system
        yield folder, image


@contextmanager
def _mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-o", options, str(image), str(folder)], capture_output=True, text=True)
    if done.returncode and options == "loop":
        pytest.skip(f"this machine mounts no file system from a file: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def _after_a_power_cut(image: Path, system: str) -> Iterator[Path]:
    copy = image.with_name("disk-after")
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
    # XFS refuses to mount a second file system of the same identity.
    with _mounted(copy, image.with_name("after"), "loop,nouuid" if system == "xfs" else "loop,rw") as folder:
        yield folder
    copy.unlink()


def test_a_placed_instance_survives_by_its_name(disk: tuple[Path, Path]) -> None:
    folder, image = disk
    system = file_system_of(folder)
    spool = Spool(folder / "spool")
    assert spool.syncs_names, "the folder is not synced"
    for number in range(4):
        content = CONTENT[: len(CONTENT) >> 4 * number]  # down to some hundred bytes
        received = spool.incoming / f"{number}.part"
        received.write_bytes(content)
        placed = spool.add_instance(received, f"1.2.3.{number}", f"digest-{number}")
        with _after_a_power_cut(image, system) as after:
            assert (after / "spool" / placed.path).read_bytes() == content
        received.unlink()


def test_what_was_not_synced_does_not(disk: tuple[Path, Path]) -> None:
    """That is: the test above could fail."""
    folder, image = disk
    received, final = folder / "received", folder / "final"
    received.write_bytes(CONTENT)
    os.link(received, final)
    with _after_a_power_cut(image, file_system_of(folder)) as after:
        assert not (after / "final").exists() or (after / "final").read_bytes() != CONTENT


def test_without_a_journal_the_folder_is_synced_too(tmp_path: Path) -> None:
    with _new_disk(tmp_path, "ext4", "-O", "^has_journal") as (folder, _):
        assert not Spool(folder / "spool").syncs_names
