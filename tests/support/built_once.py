"""What takes long to build and is always the same: kept in pytest's cache under a digest of its builders."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILDERS = ("keras", "numpy", "openvino", "tensorflow")  # and every module of `model`


def built_once(config: pytest.Config, name: str, build: Callable[[Path], object]) -> Path:
    """The folder that `build` made, to be copied or read only; other workers and runs wait for it."""
    digest = hashlib.sha256()
    for module in sorted((ROOT / "model").rglob("*.py")):
        digest.update(module.read_bytes())
    digest.update(" ".join(version(builder) for builder in BUILDERS).encode())
    cache = config.cache.mkdir("built")  # type: ignore[union-attr]
    made = cache / f"{name}-{digest.hexdigest()[:16]}"
    with (cache / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in cache.glob(f"{name}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                build(Path(folder) / name)
                (Path(folder) / name).rename(made)
    return made
