"""The same work on files, without a service."""
