"""The ledger: the one place where state lives. Tables in `schema`, transitions in `instances`, `jobs`, `job_claims`, `outbox`, `nodes`."""

from daemon.ledger.transactions import UNAVAILABLE, Ledger, look, recording_a_file

__all__ = ["UNAVAILABLE", "Ledger", "look", "recording_a_file"]
