"""config/mammod.toml documents every setting with its default, and nothing else."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from config.settings import ENVIRONMENT_PREFIX, Settings

DEFAULT_FILE = Path(__file__).parents[2] / "config" / "mammod.toml"
OPTIONAL = re.compile(r"^# (?=[a-z_]+ = )", re.MULTILINE)  # a setting without a default: "# host = ..."


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


def keys(table: dict[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, values in table.items() for key in values}


def defaults() -> dict[str, Any]:
    return Settings().model_dump()


def test_it_gives_every_default() -> None:
    assert Settings(**tomllib.loads(DEFAULT_FILE.read_text())) == Settings()


def test_it_names_every_setting_that_has_a_default_and_no_other() -> None:
    with_default = {
        f"{section}.{key}"
        for section, values in defaults().items()
        for key, value in values.items()
        if value is not None
    }
    assert keys(tomllib.loads(DEFAULT_FILE.read_text())) == with_default


def test_it_shows_every_other_setting_as_an_example_that_holds() -> None:
    table = tomllib.loads(OPTIONAL.sub("", DEFAULT_FILE.read_text()))
    assert keys(table) == keys(defaults())
    Settings(**table)
