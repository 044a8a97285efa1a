"""Loads the fixtures that any test may use, such as real peers on free loopback ports."""

from __future__ import annotations

pytest_plugins = [
    "tests.support.peers.fixtures",
    "tests.support.peers.postgresql",
    "tests.support.cases",
    "tests.support.listeners",
    "tests.support.trusted_authority",
    "tests.support.browser.fixtures",
]
