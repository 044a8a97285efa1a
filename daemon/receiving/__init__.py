"""Instances in: the listener, admission, C-STORE, and the intake into spool and ledger."""
