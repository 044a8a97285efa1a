"""Old names of settings are taken for one minor version: the value counts, a warning comes once, and both
names are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import config.renamed
from config.errors import ConfigurationError
from config.loading import load_settings
from config.renamed import RENAMED

# The value that each old name is given, and where the setting is found.
OLD = {
    "archive": {
        "retry_longest_s": 321,
        "stow_token_file": Path("/token"),
        "commitment_asks": 7,
        "commitment_wait_s": 11,
    },
    "retention": {"max_share": 0.5},
    "service": {"stop_within_s": 12},
    "workers": {"count": 3},
    "peer": {"may": ("echo",)},
}


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.renamed, "_warned", set())


def written(values: dict[str, Any]) -> str:
    lines = []
    for key, value in values.items():
        text = f'["{value[0]}"]' if isinstance(value, tuple) else f'"{value}"' if isinstance(value, Path) else value
        lines.append(f"{key} = {text}")
    return "\n".join(lines)


def test_every_renamed_setting_is_tried_here() -> None:
    assert {(section, old) for section, values in OLD.items() for old in values} == set(RENAMED)


@pytest.mark.parametrize(("section", "old"), sorted(RENAMED))
def test_an_old_name_sets_the_new_setting_and_warns_once(section: str, old: str, tmp_path: Path) -> None:
    value = OLD[section][old]
    file = tmp_path / "mammod.toml"
    if section == "peer":
        file.write_text(f'[[listener.peers]]\nae_title = "PACS"\n{written({old: value})}\n')
    else:
        file.write_text(f"[{section}]\n{written({old: value})}\n")
    with capture_logs() as logged:
        settings = load_settings(file)
        load_settings(file)
    place: Any = settings.listener.peers[0] if section == "peer" else getattr(settings, section)
    assert getattr(place, RENAMED[section, old]) == value
    assert [(event["old"], event["new"]) for event in logged] == [(old, RENAMED[section, old])]


def test_an_old_name_counts_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAMMOD_WORKERS__COUNT", "5")
    (tmp_path / "mammod.toml").write_text("")
    assert load_settings(tmp_path / "mammod.toml").workers.classifiers == 5


def test_both_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mammod.toml"
    file.write_text("[workers]\ncount = 1\nclassifiers = 2\n")
    with pytest.raises(
        ConfigurationError, match="count is the old name of classifiers, and both are set; set classifiers alone"
    ):
        load_settings(file)


def test_the_changelog_has_every_old_name() -> None:
    rows = re.findall(
        r"^\| `\[(\w+)\] (\w+)` \| `(\w+)` \|", (Path(__file__).parents[2] / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    named = {("peer" if section == "listener" else section, old): new for section, old, new in rows}
    assert named == RENAMED
