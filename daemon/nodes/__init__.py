"""Several nodes on one ledger: joining, leases, taking over."""
