"""The ledger: the one place where state lives.

Tables stand in `schema`, what the ledger hands out in `records`, transitions in `instances`, `jobs`,
`job_claims`, `outbox`, `nodes` and `retention`, and how the database is opened in `database`.
"""

from daemon.ledger.transactions import UNAVAILABLE, Ledger, look, recording_a_file

__all__ = ["UNAVAILABLE", "Ledger", "look", "recording_a_file"]
