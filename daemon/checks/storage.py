"""Check the storage: spool, ledger, distance to the size limit, audit file."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from config.errors import MammodError
from config.settings import Settings
from daemon.checks.finding import Finding
from daemon.checks.machine import newest_is_ahead
from daemon.checks.nodes import node_findings
from daemon.ledger import Ledger, retention
from daemon.maintenance.retention import size_limit
from daemon.storage.spool import Spool, open_spool

WARN_FRACTION = 0.9  # of the size limit


def storage_findings(settings: Settings) -> Iterator[Finding]:
    """Check spool, ledger, retention and audit file."""
    spool = _spool(settings)
    yield spool
    if spool.good or make_url(settings.ledger_url).get_backend_name() != "sqlite":
        yield from _ledger(settings, spool.good)
    yield from _audit(settings)


def _spool(settings: Settings) -> Finding:
    directory = settings.spool.directory
    try:
        spool = open_spool(settings.spool)
        spool.check_room()
    except OSError as error:
        return Finding(
            "spool",
            False,
            f"{directory} cannot be used ({error.strerror}); {_owner(directory)}create it for this user, or set spool.directory",
        )
    except MammodError as error:
        return Finding("spool", False, str(error))
    for folder in (spool.incoming, directory / "instances", directory / "outbox"):
        if not os.access(folder, os.W_OK | os.X_OK):
            return Finding(
                "spool",
                False,
                f"{folder} is not writable for this user; {_owner(folder)}run as the service's user",
            )
    free = f"{directory}, {spool.free() // 2**30} GiB free"
    return Finding("spool", True, free) if spool.store is None else _bucket(spool, settings, free)


def _bucket(spool: Spool, settings: Settings, free: str) -> Finding:
    store = spool.store
    assert store is not None
    try:
        store.probe(spool.incoming)
    except MammodError as error:
        return Finding("spool", False, str(error))
    plain = (settings.spool.endpoint or "").startswith("http://")
    unsafe = "; it uses http, so images travel unencrypted: use it on a private network only" if plain else ""
    text = f"{store} stores, returns and deletes objects{unsafe}; cached copies in {free}"
    return Finding("spool", True, text, warning=plain)


def _owner(path: Path) -> str:
    """Return who owns the nearest existing directory and who runs this, as a clause for advice."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{path} belongs to {_name(path.stat().st_uid)}, and this runs as {_name(os.geteuid())}; "
    except OSError:
        return ""


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _ledger(settings: Settings, has_spool: bool) -> Iterator[Finding]:
    try:
        ledger = Ledger(settings.ledger_url, settings.ledger.password_file)
    except MammodError as error:
        yield Finding("ledger", False, f"{error}{_advice(settings)}")
        return
    try:
        yield Finding("ledger", True, "opens and has the schema of this version")
        yield from node_findings(settings, ledger)
        if ahead := newest_is_ahead(ledger):
            yield ahead
        if has_spool:
            yield from _retention(settings, ledger)
    finally:
        ledger.close()


def _advice(settings: Settings) -> str:
    url = make_url(settings.ledger_url)
    if url.get_backend_name() == "sqlite":
        return f"; the file is {url.database}: run as the service's user"
    where = f"{url.host or 'this machine'}:{url.port or 5432}"
    return (
        f"; is PostgreSQL running at {where}, and may user {url.username} connect to database {url.database} from here?"
    )


def _retention(settings: Settings, ledger: Ledger) -> Iterator[Finding]:
    limit = size_limit(settings.retention, None if settings.spool.url else settings.spool.directory)
    with ledger.read() as connection:
        held = retention.spool_bytes(connection)
    if limit is None:
        yield Finding(
            "retention",
            True,
            f"the spool holds {held / 2**30:.1f} GiB; only age limits it ([retention] max_bytes, max_disk_fraction)",
        )
        return
    fraction = held / limit
    text = f"the spool holds {held / 2**30:.1f} of {limit / 2**30:.1f} GiB ({100 * fraction:.0f} %)"
    if fraction >= WARN_FRACTION:
        text += ": the oldest finished jobs are deleted early; to keep them, raise [retention] max_bytes or max_disk_fraction"
    yield Finding("retention", True, text, warning=fraction >= WARN_FRACTION)


def _audit(settings: Settings) -> Iterator[Finding]:
    file = settings.audit.file
    if file is None:
        return
    target = file if file.exists() else file.parent
    if not target.exists():
        yield Finding("audit", False, f"the directory {file.parent} does not exist; create it, or set audit.file")
    elif file.is_dir() or not os.access(target, os.W_OK):
        yield Finding(
            "audit", False, f"{file} is not writable; {_owner(target)}run as the service's user, or set audit.file"
        )
    else:
        yield Finding("audit", True, f"{file} is writable")
