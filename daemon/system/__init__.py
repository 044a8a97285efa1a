"""The machine: processes, back-off, clocks, systemd, TLS credentials, the log."""
