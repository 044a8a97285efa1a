"""Prose of the documents has short lines, so that a reader, and a diff, shows one thought at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.prose import too_long, wrapped
from tests.docs.test_links import ROOT, documents


@pytest.mark.parametrize("document", documents(), ids=str)
def test_lines_of_prose_are_short(document: Path) -> None:
    assert list(too_long((ROOT / document).read_text(encoding="utf-8"))) == [], "python -m tests.docs.prose FILE"


def test_what_is_too_long_is_found_and_what_cannot_be_broken_is_not() -> None:
    word = "x" * 111
    assert list(too_long(f"{word}\n| {word} |\n\n    {word}\n\n- {word}\n    {word}\n")) == [
        "line 1: 111 characters, at most 110",
        "line 6: 113 characters, at most 110",
        "line 7: 115 characters, at most 110",
    ]
    assert list(too_long(f"```\n{word}\n```\n[link](https://{word}) https://{word} `{word}`\n")) == []


def test_only_paragraphs_with_a_long_line_are_filled_anew() -> None:
    long = "word " * 30
    text = f"short\nlines\n\n{long}\nend\n\n- {long}\n- item\n\n| {long} |\n\n    {long}\n"
    made = wrapped(text)
    assert made.split() == text.split()
    assert made.startswith("short\nlines\n\n") and f"\n| {long} |\n\n    {long}\n" in made
    assert "\n  word word" in made, "a list item keeps its indent"
    assert max(len(line) for line in made.splitlines() if "|" not in line and not line.startswith("    ")) <= 110
