"""The `mammod` commands, one module for each group; `daemon.cli` names them all."""
