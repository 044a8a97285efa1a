"""Durable files in a directory of Linux: links, folders and names that survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that pass when space is made
# These file systems note a file and its new name in one transaction of their journal, which an fsync of the
# file waits for. The fsync of the folder that POSIX asks for has nothing left to write, and costs one more
# disk wait.
SYNCS_NAMES = ("ext4", "xfs")
EXT4_JOURNAL = "/proc/fs/jbd2/{device}-8"  # inode 8 is the journal, if it lies in the file system itself


def syncs_names(path: Path) -> bool:
    """Return whether syncing a file at `path` also syncs a name that it was just given."""
    system = file_system_of(path)
    if system == "ext4":  # it may have been made without a journal
        device = path.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        return Path(EXT4_JOURNAL.format(device=name)).exists()
    return system in SYNCS_NAMES


def file_system_of(path: Path) -> str:
    """Return the type in Linux's mount table, such as "ext4"; "" if it is not known."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, system = line.partition(" - ")  # proc_pid_mountinfo(5)
            if mount.split(" ")[2] == number:
                return system.split(" ")[0]
    return ""


def link(received: Path, final: Path) -> bool:
    """Give the file `received` the name `final` as well; return whether that name is new.

    An existing file of that name is replaced: it may be half written (power cut) or old.
    """
    try:
        os.link(received, final)
    except FileNotFoundError:
        if not received.exists():
            raise
        make_parent(final)
        return link(received, final)
    except FileExistsError:
        if final.samefile(received):  # linked before; a rename would leave both names
            os.utime(final)  # retention deletes old files that have no row, which this one may have been
            return False
        temporary = final.with_suffix(f".{secrets.token_hex(4)}.tmp")
        os.link(received, temporary)
        os.utime(temporary)
        temporary.rename(final)
        return False
    return True


def write_durably(final: Path, content: bytes) -> None:
    """Write a file with mode 0600 that replaces any other of its name, and sync it with its name.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    make_parent(final)
    temporary = final.with_suffix(f".{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except OSError:  # disk full: half a file must not take the space that is left
        temporary.unlink(missing_ok=True)
        raise
    sync(final.parent)


def make_parents(folder: Path) -> None:
    """Make the 256 folders below `folder` at once, so that no instance has to wait for the disk."""
    missing = {f"{number:02x}" for number in range(256)} - {path.name for path in folder.iterdir()}
    for name in missing:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    if missing:
        sync(folder)


def make_parent(path: Path) -> None:
    """Make the folder that `path` lies in, with its 255 siblings, if it is missing."""
    if not path.parent.exists():
        make_parents(path.parent.parent)


def sync(path: Path) -> int:
    """Flush a file or folder to the disk; return its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
