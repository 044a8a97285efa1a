"""The machine: processes, clocks, systemd, TLS credentials, the log."""
