"""Keep outlines already found in masks in a file: decoding thousands of masks dominates the reading time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class KnownOutlines:
    """Store outlines by lesion, one JSON line each, written as soon as an outline is found.

    `path` None keeps nothing. A line holds the stamp of the files that the outline came from; a line
    truncated by a kill is ignored.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.of_lesion: dict[str, tuple[str, np.ndarray]] = {}
        if path is None or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
                self.of_lesion[found["lesion"]] = found["stamp"], np.array(found["outline"], float)
            except (ValueError, KeyError, TypeError):
                continue

    def keep(self, lesion: str, stamp: str, outline: np.ndarray) -> None:
        """Add one outline (N, 2), unless it is already stored with the same stamp."""
        if self._path is None or self.of_lesion.get(lesion, ("",))[0] == stamp:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"lesion": lesion, "stamp": stamp, "outline": outline.tolist()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
