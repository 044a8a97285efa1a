"""Accept the old names of settings renamed in 0.2, for one minor version and with a warning."""

from __future__ import annotations

from typing import Any

import structlog

# (section, old name) -> new name, as in CHANGELOG.md. 0.3 will refuse the old names.
RENAMED = {
    ("archive", "retry_longest_s"): "retry_max_s",
    ("archive", "stow_token_file"): "dicomweb_token_file",
    ("archive", "commitment_asks"): "commitment_attempts",
    ("archive", "commitment_wait_s"): "commitment_timeout_s",
    ("peer", "may"): "permissions",
    ("retention", "max_share"): "max_disk_fraction",
    ("service", "stop_within_s"): "shutdown_timeout_s",
    ("workers", "count"): "classifiers",
}

_warned: set[tuple[str, str]] = set()


def use_new_names(section: str, values: Any) -> Any:
    """Return the values of a section under their new names; log a warning once for each old name.

    Raises:
        ValueError: a setting is given under both names.
    """
    if not isinstance(values, dict):
        return values
    renamed = dict(values)
    for (renamed_in, old), new in RENAMED.items():
        if renamed_in != section or old not in values:
            continue
        if new in values:
            raise ValueError(f"{old} is the old name of {new}, and both are set; set {new} alone")
        renamed[new] = renamed.pop(old)
        if (section, old) not in _warned:
            _warned.add((section, old))
            structlog.get_logger().warning(
                "setting renamed", section=section, old=old, new=new, old_name_ends_with="0.3"
            )
    return renamed
