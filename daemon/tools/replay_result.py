"""The result of a replay, job by job: what `replay` writes as JSON lines and `replay_report` shows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LesionComparison:
    """One lesion under both bundles; probabilities in 0..1."""

    image_uid: str
    frame: int
    old: float
    old_malignant: bool
    new: float
    new_malignant: bool


@dataclass(frozen=True)
class ReplayedJob:
    """One job; if it could not be replayed, `reason` says why and there are no lesions."""

    job: int
    revision: int
    source_uid: str
    bundle: str
    lesions: list[LesionComparison] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    reason: str | None = None


def read_results(file: Path) -> list[ReplayedJob]:
    """Read the results of earlier runs; skip a truncated last line, so that its job is replayed again."""
    results = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            lesions = [LesionComparison(**lesion) for lesion in values["lesions"]]
            results.append(ReplayedJob(**values | {"lesions": lesions}))
        except (ValueError, TypeError, KeyError):
            continue
    return results
