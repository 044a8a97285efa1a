"""Prose of the documents has lines of at most 110 characters: what a reader takes in, and a diff shows, at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_links import ROOT, documents

MAX_LINE = 110


def too_long(text: str) -> Iterator[str]:
    """The lines of prose over the limit. Tables, code, and the targets of links, which cannot be broken, do not count."""
    fenced = False
    in_list = False
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.startswith(("```", "~~~"))
        if line.strip():
            in_list = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (in_list and line.startswith(" "))
        if fenced or line.lstrip().startswith("|") or (line.startswith("    ") and not in_list):
            continue
        shown = re.sub(r"\]\([^)]*\)|https?://\S+|`[^`]{40,}`", "", line)
        if len(shown) > MAX_LINE:
            yield f"line {number}: {len(shown)} characters, at most {MAX_LINE}"


@pytest.mark.parametrize("document", documents(), ids=str)
def test_lines_of_prose_are_short(document: Path) -> None:
    assert list(too_long((ROOT / document).read_text(encoding="utf-8"))) == []


def test_what_is_too_long_is_found_and_what_cannot_be_broken_is_not() -> None:
    word = "x" * 111
    assert list(too_long(f"{word}\n| {word} |\n\n    {word}\n\n- {word}\n    {word}\n")) == [
        "line 1: 111 characters, at most 110",
        "line 6: 113 characters, at most 110",
        "line 7: 115 characters, at most 110",
    ]
    assert list(too_long(f"```\n{word}\n```\n[link](https://{word}) https://{word} `{word}`\n")) == []
