"""The bundle that the service works with, and what its reports state about it."""

from __future__ import annotations

import os
from pathlib import Path

import model
from config.errors import ConfigurationError
from config.settings import Settings
from daemon.dicom.uids import device_uid
from daemon.reports.case import Algorithm, Measured
from model.bundle import Bundle, load_bundle, untrained_bundle


def open_bundle(settings: Settings, allow_untrained: bool, *, made_at: Path | None = None) -> Bundle:
    """Return the bundle of the settings, else the packaged one, else, if allowed, an untrained one.

    The untrained bundle is made if need be and kept at `made_at`, by default in the spool directory.

    Raises:
        BundleError: see `model.bundle.load_bundle`.
        ConfigurationError: there is none.
    """
    if settings.model.bundle is not None:
        return load_bundle(settings.model.bundle, allow_untrained=allow_untrained)
    default = default_bundle_path()
    if default.exists():
        return load_bundle(default, allow_untrained=allow_untrained)
    if not allow_untrained:
        raise ConfigurationError(
            "model.bundle is not set and no trained bundle is installed; install one (mammod bundle fetch) and name it in "
            "[model] bundle, or use --allow-untrained to try mammod with a network whose numbers mean nothing"
        )
    made = made_at or untrained_path(settings)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        bundle = untrained_bundle(made)
        made.chmod(0o700)  # like all of the spool
        for file in made.iterdir():
            file.chmod(0o600)
        return bundle
    return load_bundle(made, allow_untrained=True)


def untrained_path(settings: Settings) -> Path:
    """Return the path of the untrained bundle that is made if there is no other one."""
    return settings.spool.directory / "untrained-bundle"


def engine_cache(settings: Settings) -> Path:
    """Return where an engine keeps its converted network: the spool if writable, else the user's caches."""
    if os.access(settings.spool.directory, os.W_OK):
        return settings.spool.directory / "engine"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "mammod" / "engine"


def default_bundle_path() -> Path:
    """Return the path of the packaged bundle."""
    return Path(model.__file__).parent / "bundles" / "default"


def algorithm(bundle: Bundle) -> Algorithm:
    """Return the facts of the bundle that a report states."""
    manifest = bundle.manifest
    return Algorithm(
        name=manifest.name,
        version=manifest.version,
        device_uid=device_uid(bundle.digest),
        trained=manifest.trained,
        threshold=manifest.threshold,
        intended_use=manifest.intended_use,
        temperature=manifest.temperature,
        bias=manifest.bias,
        prevalence=manifest.prevalence,
        measured=tuple(Measured(**metric.model_dump()) for metric in manifest.metrics),
        kinds=manifest.kinds,
        image_types=manifest.image_types,
        views=manifest.views,
    )
