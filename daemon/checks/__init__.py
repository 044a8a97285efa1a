"""The checks of `mammod check`, one module for each subject; `daemon.checks.run` calls them in order."""
