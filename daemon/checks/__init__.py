"""What `mammod check` looks at, a module for each subject; `daemon.checks.run` names them all in order."""
