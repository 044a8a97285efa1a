"""docs/reference/commands.md says what the commands say; every command's help has examples that work."""

from __future__ import annotations

import re
import shlex

from tests.docs.commands import FILE, commands, page


def test_the_page_is_that_of_the_commands() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.docs.commands"


def test_every_command_says_how_it_ends_and_shows_examples() -> None:
    for name, command in commands():
        text = command.help or ""
        assert re.search("[Ee]xit status", text), name
        assert "Examples:" in text, name


def test_the_examples_are_command_lines_that_the_commands_understand() -> None:
    known = dict(commands())
    tried = 0
    for name, command in known.items():
        for line in re.findall(r"^ +(mammod .*)$", command.help or "", re.MULTILINE):
            words = shlex.split(line.split(" | ")[0].split(" > ")[0])
            start = len(name.split())
            of = name if words[:start] == name.split() else " ".join(words[:3])
            known[of].make_context(of, words[len(of.split()) :], resilient_parsing=False)
            tried += 1
    assert tried > 20
