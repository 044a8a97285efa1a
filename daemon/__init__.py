"""The service: listener, spool, ledger, pairing, lesions, classifier, reports, outbox, status and the `mammod` command."""
