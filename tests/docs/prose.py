"""Wraps the prose of Markdown: `python -m tests.docs.prose FILE...` refills paragraphs with a long line."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

MAX_LINE = 110
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) +")
_NOT_PROSE = ("|", "#", "![", "<!--", "```", "~~~")


def too_long(text: str) -> Iterator[str]:
    """Yield the lines of prose over the limit; tables, code and the targets of links do not count."""
    fenced = False
    in_list = False
    for number, line in enumerate(text.splitlines(), start=1):
        fenced ^= line.startswith(("```", "~~~"))
        if line.strip():
            in_list = bool(_ITEM.match(line)) or (in_list and line.startswith(" "))
        if fenced or line.lstrip().startswith("|") or (line.startswith("    ") and not in_list):
            continue
        shown = re.sub(r"\]\([^)]*\)|https?://\S+|`[^`]{40,}`", "", line)
        if len(shown) > MAX_LINE:
            yield f"line {number}: {len(shown)} characters, at most {MAX_LINE}"


def wrapped(text: str) -> str:
    """Return Markdown with each paragraph and list item that has a long line filled anew, all else kept."""
    made: list[str] = []
    lines = text.split("\n")
    fenced = False
    while lines:
        line = lines.pop(0)
        fenced ^= line.startswith(("```", "~~~"))
        is_code = fenced or (line.startswith("    ") and not _ITEM.match(line))
        if is_code or not line.strip() or line.lstrip().startswith(_NOT_PROSE):
            made.append(line)
            continue
        paragraph = [line]
        while lines and lines[0].strip() and not _ITEM.match(lines[0]) and not lines[0].lstrip().startswith(_NOT_PROSE):
            paragraph.append(lines.pop(0))
        made += _filled(paragraph) if any(len(each) > MAX_LINE for each in paragraph) else paragraph
    return "\n".join(made)


def _filled(paragraph: list[str]) -> list[str]:
    item = _ITEM.match(paragraph[0])
    first = item[0] if item else re.match(r"\s*", paragraph[0])[0]  # type: ignore[index]
    words = " ".join([paragraph[0][len(first) :], *(line.strip() for line in paragraph[1:])])
    return textwrap.wrap(
        words,
        MAX_LINE,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(wrapped(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
