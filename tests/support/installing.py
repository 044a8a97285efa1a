"""`deploy/install.sh` for tests: below a root of the test's own, with packages of the environment that the
tests run in.

The Python that it is given makes virtual environments that see the packages of the tests' environment. So
pip finds all that the lock names already there, in the version that the lock names, and fetches nothing;
the rest of the installer is as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import ROOT

LIMIT_S = 300

PYTHON = """#!/bin/bash
# {python}, whose virtual environments see {packages}. BREAK_PIP=1: their pip does not work.
set -eu
if [ "${{1:-} ${{2:-}}" != "-m venv" ]; then exec {python} "$@"; fi
{python} -m venv --without-pip "${{@:3}}"
for site in "${{@: -1}}"/lib/python*/site-packages; do
	echo {packages} > "$site/tests.pth"
	[ -z "${{BREAK_PIP:-}}" ] || echo 'raise SystemExit("pip: no way to PyPI")' > "$site/pip.py"
done
""".replace("${{1:-} ", "${{1:-}} ")


@dataclass(frozen=True)
class Installation:
    """What lies below `root`; `python` is the one given to the installer."""

    root: Path
    python: Path
    source: Path = ROOT

    def install(self, *arguments: str, broken_pip: bool = False) -> subprocess.CompletedProcess[str]:
        return self.script("--python", str(self.python), *arguments, broken_pip=broken_pip)

    def script(
        self, *arguments: str, broken_pip: bool = False, path: str = "", stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAMMOD_", "PYTHON"))}
        environment |= {"BREAK_PIP": "1"} if broken_pip else {}
        environment["PATH"] = f"{path}:{environment['PATH']}" if path else environment["PATH"]
        return subprocess.run(
            [str(self.source / "deploy/install.sh"), "--root", str(self.root), *arguments],
            env=environment | {"HOME": str(self.root)},
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    @property
    def opt(self) -> Path:
        return self.root / "opt/mammod"

    @property
    def current(self) -> Path:
        return self.opt / "current"

    @property
    def settings(self) -> Path:
        return self.root / "etc/mammod/mammod.toml"

    @property
    def ledger(self) -> Path:
        return self.root / "var/lib/mammod/spool/ledger.sqlite"

    def versions(self) -> list[str]:
        """The names of the installations, oldest first."""
        return sorted((path.name for path in self.opt.glob("[0-9]*")), key=lambda name: name.partition("-")[2])

    def mammod(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "usr/local/bin/mammod"), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )


def installation(folder: Path, source: Path = ROOT) -> Installation:
    """Nothing is installed yet in `folder`/root."""
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable, packages=sysconfig.get_path("purelib")))
    python.chmod(0o755)
    return Installation(folder / "root", python, source)
