"""Writes docs/reference/commands.md from the commands themselves: `python -m tests.docs.commands`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from daemon.cli.app import app
from tests.docs.prose import wrapped

FILE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
INTRODUCTION = """# The `mammod` command

Written by `python -m tests.docs.commands` from the commands themselves; a test compares the two.
`mammod COMMAND --help` says the same.

Every command that needs settings takes `--config FILE` (default: `/etc/mammod/mammod.toml` if it exists, else the
defaults) and the environment's `MAMMOD_<SECTION>__<KEY>`. An error is one message on standard error that says what
to do.

| exit status | means |
|---|---|
| 0 | done, nothing is wrong |
| 1 | something is wrong or was not done; the message says what |
| 2 | the command line cannot be understood |
| 78 | `serve` and `check --upgrade`: a setting or the ledger is refused, and would be refused again |

Daily work with them: [operate.md](../how-to/operate.md).
"""


def page() -> str:
    """The whole of docs/reference/commands.md."""
    return wrapped("\n".join([INTRODUCTION, *(_section(name, command) for name, command in commands())]))


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command of typer with its whole name, such as "mammod jobs list"."""
    yield from _below("mammod", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if command.hidden:
        return  # an old name, kept for one minor version
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for part, child in (inner or {}).items():
        yield from _below(f"{name} {part}", child)


def _section(name: str, command: Any) -> str:
    hints = get_type_hints(command.callback)
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    usage = " ".join([name, "[OPTIONS]", *(_usage(argument) for argument in arguments)])
    rows = "".join(f"| {_names(parameter, hints)} | {_text(parameter)} |\n" for parameter in shown)
    table = f"\n| option or argument | |\n|---|---|\n{rows}" if rows else ""
    return f"## `{name}`\n\n    {usage}\n\n{_help(command.help or '')}\n{table}"


def _help(text: str) -> str:
    """Return a docstring as Markdown: indented lines, apart in the help, are one block."""
    lines: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if not line.strip() and lines and lines[-1].startswith("    "):
            continue
        if line and not line.startswith("    ") and lines and lines[-1].startswith("    "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines).rstrip()


def _usage(argument: Any) -> str:
    name = argument.metavar or (argument.name or "").upper()
    name = name if argument.required or name.startswith("[") else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def _names(parameter: Any, hints: dict[str, Any]) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_usage(parameter)}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    takes_value = not getattr(parameter, "is_flag", False)
    kind = parameter.metavar or _kind(hints[parameter.name])
    return f"{names} {kind}" if takes_value else names


def _kind(hint: Any) -> str:
    """The type of an option's value: of `list[int] | None` that is int."""
    while inner := [part for part in get_args(hint) if part is not type(None)]:
        hint = inner[0]
    return {Path: "PATH", int: "NUMBER", float: "NUMBER"}.get(hint, "TEXT")


def _text(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    default = parameter.default
    shown = isinstance(default, str | int | float | Path) and not isinstance(default, bool) and default != ""
    needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    return f"{text}{f' Default: `{default}`.' if shown else ''}{needed}"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
