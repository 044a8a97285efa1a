"""Classify, send, export and replay without a running service."""
