"""`Arrival`: what an accepted instance is to the ledger."""

from __future__ import annotations

from enum import Enum


class Arrival(Enum):
    """What an accepted instance is to the ledger (invariant 4)."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CHANGED = "changed"
