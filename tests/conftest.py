"""Loads the fixtures that any test may use, such as real peers on free loopback ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import fork_server

fork_server.install()

pytest_plugins = [
    "tests.support.peers.fixtures",
    "tests.support.peers.postgresql",
    "tests.support.cases",
    "tests.support.listeners",
    "tests.support.trusted_authority",
    "tests.support.browser.fixtures",
]

# A module that names one of these starts a service, a framework, a browser, or another program.
SLOW = (
    "new_service", "untrained", "keras", "tensorflow", "openvino", "playwright", "support.browser", "ray_cluster",
    "ClassifierPool", '"-m", "daemon"', "pixelmed", "dciodvfy",
)  # fmt: skip
SLOW_FOLDERS = ("benchmarks", "browser", "deploy", "faults", "peers", "service", "training")
TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="without what needs a service, TensorFlow, a browser or a peer"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--fast"):
        return None
    if collection_path.is_dir():
        return True if collection_path.parent == TESTS and collection_path.name in SLOW_FOLDERS else None
    text = collection_path.read_text() if collection_path.suffix == ".py" else ""
    return True if any(word in text for word in SLOW) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        peers = [item for item in items if item.get_closest_marker("peers")]
        config.hook.pytest_deselected(items=peers)
        items[:] = [item for item in items if item not in set(peers)]
