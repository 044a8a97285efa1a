"""Everyday habits: one version, a changelog that has it, `make help`, hooks that equal `make lint`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import yaml

from config import __version__
from tests.support.repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What the others call for; nobody types them.
INNER = {"programs", "viewer"}


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "config/__init__.py"
    said = subprocess.run(
        [sys.executable, "-m", "daemon", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"mammod {__version__}\n"


def test_the_changelog_has_the_version_and_is_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" and versions[1] == __version__, "the newest version comes after Unreleased"
    numbers = [tuple(map(int, version.split("."))) for version in versions[1:]]
    assert numbers == sorted(numbers, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # keepachangelog.com


def test_make_help_names_every_target_in_one_column() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = said.stdout.splitlines()
    assert {line.split()[0] for line in lines} == set(phony.split()) - INNER
    columns = {re.match(r"\S+ +", line).end() for line in lines}  # type: ignore[union-attr]
    assert len(columns) == 1, "aligned"


def test_hooks_before_a_commit_run_what_make_lint_runs_and_fetch_nothing() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = [hook["entry"].replace("--force-exclude", "").split() for hook in hooks]
    lint = re.findall(
        r"(?:\$\(BIN\)/|xargs )(.*)$",
        re.search(r"^lint:.*?\n\n", makefile(), re.MULTILINE | re.DOTALL)[0],
        re.MULTILINE,
    )  # type: ignore[index]
    assert [" ".join(part for part in line.split() if part != ".") for line in lint] == [
        " ".join(program).removeprefix(".venv/bin/") for program in programs
    ]


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_templates_ask_for_no_patient_data() -> None:
    bug = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    assert "No patient data" in bug["body"][0]["attributes"]["value"]
    assert "no patient data" in (ROOT / ".github/pull_request_template.md").read_text()
