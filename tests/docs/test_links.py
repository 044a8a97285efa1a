"""Relative links lead to a file and, with #, to a heading there; documents and files named are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folders of tools and outputs.
LEFT_OUT = {"build", "dist", "demo-output", "test-output", "soak-output", "bench-output", "node_modules"}


def documents() -> list[Path]:
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name == ".github" or not (name.startswith(".") or name in LEFT_OUT)]
        found += [(Path(folder) / file).relative_to(ROOT) for file in files if file.endswith(".md")]
    return sorted(found)


def without_code(text: str) -> str:
    """Markdown without fenced and inline code, in which a link is none."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


def links(text: str) -> Iterator[str]:
    """Targets of inline links, pictures and definitions."""
    text = without_code(text)
    for found in re.finditer(
        r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\s*\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", text, re.MULTILINE
    ):
        yield found[1] or found[2]


def anchors(text: str) -> set[str]:
    """Return the ids of headings: lower case, no punctuation, hyphens for spaces, numbers if repeated."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#{1,6} +(.*?) *#*$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        plain = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        name, again = plain, 0
        while name in found:
            again += 1
            name = f"{plain}-{again}"
        found.add(name)
    return found


def broken(document: Path, root: Path = ROOT) -> list[str]:
    wrong = []
    for target in links((root / document).read_text(encoding="utf-8")):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = (root / document).parent / unquote(parts.path) if parts.path else root / document
        if not file.exists() or not file.resolve().is_relative_to(root):
            wrong.append(f"{target}: there is no such file")
        elif parts.fragment and parts.fragment not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: there is no such heading")
    return wrong


@pytest.mark.parametrize("document", documents(), ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document) == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One, two!\n\n[x](b.md) [y](#one-two) `[no](link.md)` ![p](gone.png)\n\n[z]: b.md#there\n"
    )
    (tmp_path / "b.md").write_text(
        "# Here\n## Here\n[web](https://example.org/) [up](../../etc/passwd) [self](#here-1)\n"
    )
    assert broken(Path("a.md"), tmp_path) == ["gone.png: there is no such file", "b.md#there: there is no such heading"]
    assert broken(Path("b.md"), tmp_path) == ["../../etc/passwd: there is no such file"]


def test_every_document_is_in_the_index() -> None:
    named = set(links((ROOT / "docs/README.md").read_text()))
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(documents) > 10 and documents - {"README.md"} <= named


def test_the_readme_leads_to_the_index_and_the_guide() -> None:
    assert {"docs/README.md", "docs/how-to/install.md", "CHANGELOG.md"} <= set(links((ROOT / "README.md").read_text()))


def test_documents_that_code_messages_and_deploy_files_name_are_there() -> None:
    # A bundle is a released object: its card names the documents of its time.
    suffixes = {".py", ".sh", ".yml", ".yaml", ".json", ".toml", ".service", ".html", ".js"}
    files = [
        path
        for folder in ("config", "daemon", "model", "training", "deploy", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "bundles" not in path.parts
    ]
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert sorted(pair for pair in named if not (ROOT / pair[1]).is_file()) == []


def test_files_that_documents_name_are_there() -> None:
    pattern = r"`((?:config|daemon|model|training|tests|deploy|benchmarks)/[\w./-]+)`"
    named = {
        (document.as_posix(), name)
        for document in documents()
        if document.name != "CHANGELOG.md"  # it names what was there at the time
        for name in re.findall(pattern, (ROOT / document).read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []
