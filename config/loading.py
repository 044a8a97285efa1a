"""Read the settings from TOML file and environment; errors name key, value, source and what is allowed."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from config.errors import ConfigurationError
from config.settings import ENVIRONMENT_PREFIX, Settings

DEFAULT_FILE = Path("/etc/mammod/mammod.toml")


def load_settings(path: Path | None = None) -> Settings:
    """Read `path` (or the default file if it exists) and the environment.

    Raises:
        ConfigurationError: one line per wrong key: the key, its value, where it was set and what is allowed.
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"settings file {path}: {error.strerror}; name a readable TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"settings file {path} is not valid TOML: {error}") from error
    _refuse_unknown_environment()
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_line(problem, path) for problem in error.errors())) from error
    except ValueError as error:  # pydantic-settings: an environment value that should be JSON but is not
        raise ConfigurationError(f"environment: {error}; lists and tables are written as JSON there") from error


def require_archive(settings: Settings) -> None:
    """Check that the settings name an archive for the reports.

    Raises:
        ConfigurationError: no archive is set, or one of its settings needs another.
    """
    if settings.archive.host is None and settings.archive.stow_url is None:
        raise ConfigurationError(
            "archive.host is not set: name the archive's host (with archive.port and archive.ae_title), or archive.stow_url"
        )
    if settings.archive.retrieve == "dicomweb" and not (settings.archive.dicomweb_url or settings.archive.stow_url):
        raise ConfigurationError(
            'archive.retrieve = "dicomweb" needs archive.dicomweb_url (or archive.stow_url): name the DICOMweb service'
        )
    if settings.archive.commitment and settings.archive.host is None:
        raise ConfigurationError(
            "archive.commitment = true needs archive.host: storage commitment goes over DICOM; set archive.host and "
            "archive.port, or commitment = false"
        )


def _refuse_unknown_environment() -> None:
    sections = Settings.model_fields
    for name in os.environ:
        section, delimiter, _ = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        if name.startswith(ENVIRONMENT_PREFIX) and delimiter and section.lower() not in sections:
            raise ConfigurationError(
                f"environment {name}: there is no section {section.lower()!r}{nearest(section, sections)}; "
                f"allowed: {', '.join(sections)}"
            )


def _line(problem: Any, path: Path | None) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    variable = ENVIRONMENT_PREFIX + "__".join(str(part) for part in problem["loc"][:2]).upper()
    source = f"environment {variable}" if variable in os.environ else f"{path or 'defaults'}"
    if problem["type"] == "extra_forbidden":
        names = _siblings(problem["loc"])
        meant = nearest(str(problem["loc"][-1]), names)
        return f"{key} ({source}): there is no such setting{meant}; allowed here: {', '.join(names) or 'see config/mammod.toml'}"
    is_secret = "ledger" in problem["loc"] or any("url" in str(part) for part in problem["loc"])
    value = "(not shown)" if is_secret else repr(problem["input"])
    return f"{key} = {value} ({source}): {problem['msg']}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ", did you mean X?" for the closest of `names`, or nothing if none is close."""
    close = get_close_matches(name.lower(), list(names), 1)
    return f", did you mean {close[0]!r}?" if close else ""


def _siblings(location: tuple[Any, ...]) -> list[str]:
    fields: dict[str, Any] = Settings.model_fields
    for part in location[:-1]:
        annotation = getattr(fields.get(part), "annotation", None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        fields = annotation.model_fields
    return list(fields)
