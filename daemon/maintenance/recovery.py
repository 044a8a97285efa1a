"""Take up unfinished work: at the start of a node, and after the clock was set back."""

from __future__ import annotations

import time

import structlog
from sqlalchemy import Connection

from config.settings import Archive as ArchiveSettings
from daemon.archive.storage_commitment import max_wait_s
from daemon.ledger import Ledger, instances, job_claims, jobs, outbox
from daemon.nodes.membership import Node
from daemon.storage.spool import Spool

log = structlog.get_logger()


def recover(*, ledger: Ledger, spool: Spool, node: Node, bundle: str, archive: ArchiveSettings) -> None:
    """Join the nodes and take up the work of dead ones; delete files without rows.

    If no other node is alive, every unfinished job is taken up. `bundle` is the digest of the bundle in use.
    """
    taken = node.join()
    orphans = node.delete_orphaned_incoming()
    begun = node.incoming.stat().st_mtime
    alone = node.is_alone()

    def transition(connection: Connection) -> None:
        job_claims.move_to_bundle(connection, bundle)
        jobs.promote(connection, None, time.time())
        if alone:
            make_all_due(connection, archive)

    ledger.transact(transition)
    if alone:
        with ledger.alone_with_spool() as connection:
            orphans += spool.delete_orphans(instances.paths(connection) | outbox.paths(connection), begun)
    log.info("recovered", orphans_removed=orphans, jobs_taken_up=taken.jobs, node=node.id, alone=alone)


def make_all_due(connection: Connection, archive: ArchiveSettings) -> int:
    """Make every delayed job and report due now; return how many there were."""
    now = time.time()
    freed = jobs.due_now(connection, now)
    return freed + outbox.due_now(connection, now, max_wait_s(archive))
