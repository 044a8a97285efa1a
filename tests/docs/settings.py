"""Writes docs/reference/settings.md from config/mammod.toml: `python -m tests.docs.settings`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "reference" / "settings.md"
SOURCE = ROOT / "config" / "mammod.toml"
INTRODUCTION = """# Settings

Written by `python -m tests.docs.settings` from [config/mammod.toml](../../config/mammod.toml), which explains
every setting and is the file to copy; a test compares the two.

A setting left out keeps its default. The environment overrides the file: `MAMMOD_<SECTION>__<KEY>`, such as
`MAMMOD_LISTENER__PORT=104`, with lists and tables as JSON. `mammod check` says what is wrong with a file, and
the nearest name of a setting that does not exist. `systemctl reload mammod` applies `[archive]`, `[lesions]`,
`[reports]`, `[retention]`, `[log]` and `[listener] peers`; the other settings need a restart. Names that were
changed, and until when the old ones are accepted: [CHANGELOG.md](../../CHANGELOG.md).
"""


@dataclass(frozen=True)
class Setting:
    """One setting of the file; `default` is None if it has none (its line is a comment)."""

    section: str
    name: str
    default: str | None
    text: str


def page() -> str:
    """Return the whole of docs/reference/settings.md."""
    found = settings(SOURCE.read_text(encoding="utf-8"))
    lines = [INTRODUCTION]
    for section in dict.fromkeys(setting.section for setting in found):
        rows = [_row(setting) for setting in found if setting.section == section]
        lines += [f"## `[{section}]`\n", "| setting | default | what it is |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def settings(text: str) -> list[Setting]:
    """Return the settings of a commented TOML file in its order, each with the comment before it."""
    found: list[Setting] = []
    section, comment, in_list = "", [], False
    for line in text.splitlines():
        if in_list:
            in_list = line != "]"
        elif heading := re.fullmatch(r"\[(\w+)\]", line):
            section, comment = heading[1], []
        elif set_ := re.fullmatch(r"(# )?(\w+) = (.*)", line):
            in_list = set_[3] == "["
            default = None if set_[1] else "a list: see the file" if in_list else f"`{set_[3]}`"
            found.append(Setting(section, set_[2], default, " ".join(comment)))
            comment = []
        elif example := re.fullmatch(r"#   (.*=.*)", line):
            comment.append(f"`{example[1]}`")
        elif line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
    return found


def _row(setting: Setting) -> str:
    text = re.sub(r"\s+", " ", setting.text).replace("|", "\\|").replace("<", "&lt;")
    return f"| `{setting.name}` | {setting.default or ''} | {text} |"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
