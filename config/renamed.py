"""Settings that were renamed in 0.2: the old name is taken for one minor version, with a warning."""

from __future__ import annotations

from typing import Any

import structlog

# Section, old name -> new name. The table in CHANGELOG.md says the same; 0.3 refuses the old names.
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
    for (of, old), new in RENAMED.items():
        if of != section or old not in values:
            continue
        if new in values:
            raise ValueError(f"{old} is the old name of {new}, and both are set; set {new} alone")
        renamed[new] = renamed.pop(old)
        if (of, old) not in _warned:
            _warned.add((of, old))
            structlog.get_logger().warning("setting renamed", section=of, old=old, new=new, old_name_ends_with="0.3")
    return renamed
