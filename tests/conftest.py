"""Loads the fixtures that any test may use: real peers on free loopback ports (see `tests.peers.fixtures`)."""

from __future__ import annotations

pytest_plugins = [
    "tests.peers.fixtures",
    "tests.peers.postgresql",
    "tests.service.fixtures",
    "tests.faults.certificates",
    "tests.browser.fixtures",
]
