"""What `mammod check` looks at, a module for each subject; `daemon.check` names them all in order."""
