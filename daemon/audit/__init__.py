"""The audit trail (PS3.15 A.5)."""
