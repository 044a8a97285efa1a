"""`make soak`: the runs named (all without a name), one after the other within one time limit; report.json
and report.txt.

A run is a module of this package with a function `run(bounds: Bounds) -> dict`: it returns its figures, and
raises AssertionError where a bar is missed. The first line of the module's docstring says in the report
what it is. Add its name to RUNS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.soak.bounds import Bounds
from tests.support.repository import ROOT

RUNS = ("kill", "fuzz")


def main() -> int:
    arguments = _arguments()
    output: Path = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "began": _now(),
        "limit_s": arguments.limit,
        "seed": arguments.seed,
        **_machine(),
        "runs": [],
    }
    end = time.monotonic() + arguments.limit
    names = arguments.runs or list(RUNS)
    for number, name in enumerate(names):
        print(f"{_now()} {name} begins", flush=True)
        share = (end - time.monotonic()) / (len(names) - number)
        report["runs"].append(_one(name, output / name, arguments.seed, share))
        _write(report, output)
    print((output / "report.txt").read_text(), end="")
    return 1 if any(run["outcome"] == "FAILED" for run in report["runs"]) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all without a name")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for all runs together")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of all chances; the report names it")
    parser.add_argument("--output", type=Path, default=ROOT / "soak-output")
    arguments = parser.parse_args()
    if unknown := set(arguments.runs) - set(RUNS):
        parser.error(f"there is no run {', '.join(sorted(unknown))}; there are: {', '.join(RUNS)}")
    return arguments


def _one(name: str, folder: Path, seed: int, share_s: float) -> dict[str, Any]:
    module = importlib.import_module(f"tests.soak.{name}")
    what = (module.__doc__ or "").splitlines()[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    result: dict[str, Any] = {"name": name, "what": what, "began": _now()}
    try:
        result |= {"outcome": "passed", "figures": module.run(Bounds(folder, seed, began + share_s))}
    except pytest.skip.Exception as skipped:
        result |= {"outcome": "SKIPPED", "why": str(skipped)}
    except (Exception, pytest.fail.Exception):
        result |= {"outcome": "FAILED", "why": traceback.format_exc()}
    return result | {"seconds": round(time.monotonic() - began, 1)}


def _machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }


def _write(report: dict[str, Any], output: Path) -> None:
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        f"mammod soak, begun {report['began']}, commit {report['commit']}, Python {report['python']}, "
        f"{report['cores']} cores, limit {report['limit_s']:g} s, seed {report['seed']}",
    ]
    for run in report["runs"]:
        lines += ["", f"{run['outcome']}: {run['name']}, {run['seconds']:g} s", f"  {run['what']}"]
        lines += [f"  {name}: {value}" for name, value in run.get("figures", {}).items()]
        lines += [f"  {line}" for line in run.get("why", "").splitlines()]
    (output / "report.txt").write_text("\n".join(lines) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
