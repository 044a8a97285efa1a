"""Associations: PDUs, messages, presentation contexts."""
