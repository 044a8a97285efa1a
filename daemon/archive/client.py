"""The archive as we call it."""

from daemon.archive.dimse_client import MAX_PDU, Archive, ContextsRefused

__all__ = ["MAX_PDU", "Archive", "ContextsRefused"]
