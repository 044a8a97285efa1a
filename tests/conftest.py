"""Loads the fixtures that any test may use: real peers on free loopback ports (see `tests.support.peers.fixtures`)."""

from __future__ import annotations

from tests.support import fork_server

fork_server.install()

pytest_plugins = [
    "tests.support.peers.fixtures",
    "tests.support.peers.postgresql",
    "tests.support.cases",
    "tests.support.trusted_authority",
    "tests.support.browser.fixtures",
]
