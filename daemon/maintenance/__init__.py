"""Periodic care: retention, consistency, repair."""
