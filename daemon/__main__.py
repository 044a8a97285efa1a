"""`python -m daemon`: the `mammod` command."""

from daemon.cli.app import main

if __name__ == "__main__":
    main()
