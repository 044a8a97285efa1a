"""Changed copies of settings name settings that exist: pydantic's `model_copy` does not check."""

from __future__ import annotations

import ast
from pathlib import Path

from pydantic import BaseModel

import config.settings

ROOT = Path(__file__).parents[1]
SETTINGS = {
    name
    for model in vars(config.settings).values()
    if isinstance(model, type) and issubclass(model, BaseModel)
    for name in model.model_fields
}


def updated(path: Path) -> set[str]:
    """Return the names that `model_copy(update={...})` changes in a module."""
    return {
        str(key.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "model_copy"
        for keyword in node.keywords
        if isinstance(keyword.value, ast.Dict)
        for key in keyword.value.keys
        if isinstance(key, ast.Constant)
    }


def test_copies_of_settings_change_settings_that_exist() -> None:
    paths = [path for folder in ("daemon", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT): updated(path) for path in paths}
    assert "classifiers" in set().union(*found.values()), "the calls are found"
    assert {path: names - SETTINGS for path, names in found.items() if names - SETTINGS} == {}
