"""`mammod bundle`: inspect, verify and install model bundles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from config.loading import load_settings
from daemon.cli.options import ConfigOption

LINE_INTERVAL_S = 30.0

app = typer.Typer(help="Inspect, verify and install model bundles.", no_args_is_help=True)


@app.command("show")
def bundle_show(
    path: Annotated[Path | None, typer.Argument(help="The bundle; the service's own if not given.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print a bundle's card: purpose, training data, measured performance and limits.

    Exit status: 0, or 1 if the bundle cannot be used.

    Examples:

        mammod bundle show

        mammod bundle show bundles/next
    """
    from model.bundle import card

    print(card(_bundle(path, config)))


@app.command("verify")
def bundle_verify(
    path: Annotated[Path | None, typer.Argument(help="The bundle; the service's own if not given.")] = None,
    config: ConfigOption = None,
) -> None:
    """Verify a bundle: complete manifest, undamaged weights.

    Exit status: 0 the bundle is intact, 1 it is not.

    Examples:

        mammod bundle verify bundles/next
    """
    bundle = _bundle(path, config)
    trained = "trained" if bundle.manifest.trained else "UNTRAINED: its numbers mean nothing"
    print(f"ok: {bundle.manifest.name} {bundle.manifest.version} ({trained}), digest {bundle.digest}")


@app.command("fetch")
def bundle_fetch(
    source: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="A bundle's folder, a ZIP file of one, or its URL.")
    ],
    digest: Annotated[
        str | None, typer.Option(help="The bundle's digest, or at least its first 12 digits; needed for a URL.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder in which bundles are installed.")] = Path("/var/lib/mammod/bundles"),
) -> None:
    """Verify a bundle and install it in a folder named by its digest; the settings are not changed.

    Exit status: 0 it is installed, 1 it is not.

    Examples:

        mammod bundle fetch next.zip --to bundles

        mammod bundle fetch https://example.org/next.zip --digest 3f0c9a51e2d7
    """
    from daemon.tools.fetch_bundle import fetch_bundle

    with _progress() as progress:
        bundle = fetch_bundle(source, to, digest, progress)
    print(f"installed: {bundle.manifest.name} {bundle.manifest.version}, digest {bundle.digest}, in {bundle.path}")
    print(f'To use it, set [model] bundle = "{bundle.path}" and restart the service.')


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show the bytes fetched: a bar on a terminal, else a line every 30 s."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal shown
        if not console.is_terminal and time.monotonic() - shown >= LINE_INTERVAL_S:
            shown = time.monotonic()
            console.print(f"fetching the bundle: {done:,} of {total or 0:,} bytes" if total else f"{done:,} bytes")

    columns = (TextColumn("fetching the bundle"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("bundle", total=None)

        def report(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)
            line(done, total)

        yield report


def _bundle(path: Path | None, config: Path | None) -> Any:
    from daemon.workers.bundle_source import open_bundle
    from model.bundle import load_bundle

    return (
        load_bundle(path, allow_untrained=True) if path else open_bundle(load_settings(config), allow_untrained=False)
    )
