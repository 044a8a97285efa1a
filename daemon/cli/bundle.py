"""`mammod bundle`: inspect model bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from config.loading import load_settings
from daemon.cli.options import ConfigOption

app = typer.Typer(help="Inspect model bundles.", no_args_is_help=True)


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


def _bundle(path: Path | None, config: Path | None) -> Any:
    from daemon.workers.bundle_source import open_bundle
    from model.bundle import load_bundle

    return (
        load_bundle(path, allow_untrained=True) if path else open_bundle(load_settings(config), allow_untrained=False)
    )
