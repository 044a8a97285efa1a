"""The `mammod` commands, one module for each group; `daemon.cli.app` names them all."""
