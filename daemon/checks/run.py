"""`mammod check`: report what would prevent the service from working, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from config.errors import MammodError
from config.settings import Settings
from daemon.checks.archive import archive_findings
from daemon.checks.certificates import certificate_findings
from daemon.checks.engine import engine_finding
from daemon.checks.finding import Finding
from daemon.checks.machine import machine_findings
from daemon.checks.ports import port_findings
from daemon.checks.ray_cluster import cluster_findings
from daemon.checks.storage import storage_findings
from daemon.errors import SpoolUnavailable
from daemon.ledger import Ledger, look
from daemon.ledger.database import missing_file
from daemon.maintenance.consistency_check import check_consistency
from daemon.storage.spool import open_spool
from daemon.workers.bundle_source import open_bundle


def findings(settings: Settings, allow_untrained: bool) -> Iterator[Finding]:
    """Check everything the service needs; yield each finding as soon as it is known."""
    yield from storage_findings(settings)
    yield from _bundle(settings, allow_untrained)
    yield from port_findings(settings)
    if not settings.listener.peers:
        yield Finding(
            "peers", True, "anyone may send; to restrict that, list AE titles and networks in [[listener.peers]]"
        )
    yield from certificate_findings(settings)
    yield from archive_findings(settings)
    yield from machine_findings(settings)


def deep_findings(settings: Settings) -> Iterator[Finding]:
    """Compare the whole ledger with the whole spool; change nothing, not even a ledger of an earlier version.

    If the spool is a bucket, every file is downloaded.
    """
    directory = settings.spool.directory
    if not directory.is_dir():
        yield Finding(
            "spool", False, f"{directory} does not exist; is this the service's settings file, and did it ever start?"
        )
        return
    if missing := missing_file(settings.ledger_url):
        yield Finding("ledger", False, f"{missing} does not exist; is this the service's settings file?")
        return
    try:
        schema = look(settings.ledger_url, settings.ledger.password_file)
        if schema.present != schema.newest:
            yield Finding(
                "ledger",
                False,
                f"its schema {schema.present or '(none yet)'} is of an earlier version, this version needs {schema.newest}; "
                "start the service, which upgrades it, and check again",
            )
            return
        ledger = Ledger(settings.ledger_url, settings.ledger.password_file)
    except MammodError as error:
        yield Finding("ledger", False, str(error))
        return
    try:
        found = check_consistency(ledger, open_spool(settings.spool))
    except SpoolUnavailable as error:
        yield Finding("spool", False, str(error))
        return
    finally:
        ledger.close()
    for fault in found.faults:
        subject, _, problem = fault.partition(": ")
        yield Finding(subject, False, problem)
    yield Finding(
        "ledger and spool",
        not found.faults,
        f"{found.instances} instances, {found.reports} reports and {found.jobs} jobs checked, "
        f"{found.bytes_hashed / 2**20:.1f} MiB hashed, {len(found.faults)} faults",
    )


def _bundle(settings: Settings, allow_untrained: bool) -> Iterator[Finding]:
    try:
        bundle = open_bundle(settings, allow_untrained)
    except MammodError as error:
        yield Finding("bundle", False, str(error))
        return
    trained = "trained" if bundle.manifest.trained else "UNTRAINED: its results mean nothing"
    yield Finding("bundle", True, f"{bundle.manifest.name} {bundle.manifest.version}, {trained}")
    if settings.workers.backend == "local":
        yield engine_finding(settings, bundle)
    yield from cluster_findings(settings, bundle)
