"""One job, from its claim to the reports in the outbox."""
