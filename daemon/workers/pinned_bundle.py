"""A copy of the bundle as it was verified at start: its own folder may change while the service runs."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from uuid import uuid4

import structlog

from daemon.system.file_stamp import FileStamp, file_stamp
from model.bundle import Bundle, load_bundle
from model.errors import BundleError

log = structlog.get_logger()


def pin_bundle(bundle: Bundle, spool: Path, in_use: Collection[str] = ()) -> Bundle:
    """Return the same bundle as a copy in `spool`/bundle/<digest>, made unless it is there and complete.

    Copies of other bundles are deleted, except for those that other nodes run (`in_use`, by digest).

    Raises:
        BundleError: the bundle was changed while it was copied.
        OSError: there is no room for it.
    """
    folder = spool / "bundle"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / bundle.digest
    for other in folder.iterdir():
        if other != target and not any(other.name.startswith(digest) for digest in in_use):
            shutil.rmtree(other, ignore_errors=True)
    if _is_whole(target, bundle.digest):
        return load_bundle(target, allow_untrained=True)
    # Another node may be doing the same: each has a folder of its own, which then takes the name at once.
    new = folder / f"{bundle.digest}.{uuid4().hex}"
    shutil.copytree(bundle.path, new, copy_function=shutil.copyfile)
    new.chmod(0o700)
    for file in new.iterdir():
        file.chmod(0o600)
    if load_bundle(new, allow_untrained=True).digest != bundle.digest:
        shutil.rmtree(new, ignore_errors=True)
        raise BundleError(f"the bundle in {bundle.path} was changed while it was loaded; start again")
    try:
        new.rename(target)
    except OSError:  # there is one: another node's by now, or one that is damaged
        if not _is_whole(target, bundle.digest):
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    return load_bundle(target, allow_untrained=True)


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        return load_bundle(folder, allow_untrained=True).digest == digest
    except BundleError:
        return False


class BundleWatch:
    """Reports once when the bundle's own folder no longer holds what the service runs."""

    def __init__(self, bundle: Bundle) -> None:
        self._path, self._digest = bundle.path, bundle.digest
        self._stamp = _stamp(bundle.path)

    def look(self) -> str | None:
        """Return what has changed since the last call, as a line for the log; None if nothing has."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            digest = load_bundle(self._path, allow_untrained=True).digest
        except BundleError as error:
            return f"the next start would refuse what lies there: {error}"
        if digest == self._digest:
            return None
        return f"the next start takes bundle {digest[:12]} for {self._digest[:12]}"


def _stamp(path: Path) -> list[tuple[str, FileStamp | None]]:
    """Return what changes with any file of the folder."""
    try:
        return [(file.name, file_stamp(file)) for file in sorted(path.iterdir())]
    except OSError:
        return []
