"""Deletes files of the spool whose ledger rows are gone, without racing with an intake."""

from __future__ import annotations

import time
from collections.abc import Sequence

from daemon.ledger import Ledger, instances, outbox
from daemon.ledger.database import IDLE_IN_TRANSACTION_S
from daemon.storage.spool import Spool

FILES_AT_ONCE = 100  # deleted while intake waits


def delete_files(ledger: Ledger, spool: Spool, paths: Sequence[str]) -> int:
    """Delete files whose rows were deleted, except those received or written again since; return how many.

    A crash in between leaves files without a row, which `daemon.maintenance.retention.delete_orphans`
    deletes.
    """
    deleted = 0
    for start in range(0, len(paths), FILES_AT_ONCE):
        some = paths[start : start + FILES_AT_ONCE]
        with ledger.alone_with_spool() as connection:
            deadline = exclusive_until()
            known = instances.known_paths(connection, some) | outbox.known_paths(connection, some)
            gone = [path for path in some if path not in known]
            if time.monotonic() < deadline:
                deleted += spool.delete(gone)
    return deleted


def exclusive_until() -> float:
    """Return until when (monotonic clock) this node surely has the spool alone.

    A node that is frozen in between loses the spool, and must delete nothing more.
    """
    return time.monotonic() + IDLE_IN_TRANSACTION_S / 2
