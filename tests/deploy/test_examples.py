"""The examples of settings load, and say what their comments say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config.loading import load_settings
from config.settings import ENVIRONMENT_PREFIX

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.toml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)
    load_settings(example)


def test_the_cluster_shares_all_that_nodes_share() -> None:
    settings = load_settings(next(path for path in EXAMPLES if path.name == "cluster.toml"))
    assert settings.spool.url and settings.ledger_url.startswith("postgresql") and settings.workers.backend == "ray"
