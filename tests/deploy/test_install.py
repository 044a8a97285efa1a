"""`deploy/install.sh`: install, upgrade, what is refused, uninstall. With packages from PyPI: `make
install-check`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from config import __version__
from daemon.cli.app import app
from daemon.errors import LedgerError
from daemon.ledger import Ledger, look
from tests.support.installing import ROOT, Installation, installation
from tests.support.old_ledger import ROWS, kept, schema, set_schema, write_old_ledger
from tests.test_rooms import locked

pytestmark = pytest.mark.timeout(1200)  # 30 s of CPU; a busy machine makes minutes of it
EXTRAS = ("openvino", "postgresql", "s3", "ray")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source release: what a site gets that has no checkout."""
    folder = tmp_path_factory.mktemp("release")
    build = "from hatchling.build import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"mammod-{__version__}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Path:
    """A folder as --download leaves it, but for the packages, which the tests' environment has."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(release)], check=True)
    return folder


def of(folder: Path, source: Path = ROOT) -> Installation:
    return installation(folder, source)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")} if root.exists() else set()


def test_a_life_of_an_installation(tmp_path: Path, release: Path, wheels: Path) -> None:
    here = of(tmp_path, release)
    first = here.install("--extra", "postgresql")  # it makes its own wheel
    assert first.returncode == 0, first.stdout + first.stderr
    assert "with postgresql" in first.stdout
    files = files_of(here)
    assert {"config/mammod.toml", "daemon/ledger/migrations/env.py", "model/bundles/default/weights.npz"} <= files
    assert not {name.partition("/")[0] for name in files} & {"tests", "deploy", "benchmarks", "docs"}
    assert here.mammod("--version").stdout == f"mammod {__version__}\n"
    (old,) = here.versions()
    assert str(here.current.readlink()) == old
    for name in ("systemd/system/mammod.service", "sysusers.d/mammod.conf", "tmpfiles.d/mammod.conf"):
        assert (here.root / "usr/local/lib" / name).is_file()
    assert here.settings.stat().st_mode & 0o777 == 0o640
    assert (here.current / "share/doc/mammod/docs/how-to/install.md").is_file()

    # A site sets it up, an early version leaves a ledger, and it is upgraded.
    chosen = here.settings.read_text().replace('# host = "pacs.example.org"', 'host = "127.0.0.1"  # OURS')
    assert "OURS" in chosen
    here.settings.write_text(chosen)
    write_old_ledger(here.ledger)
    upgrade = here.install("--wheel", str(next(wheels.glob("*.whl"))))
    assert upgrade.returncode == 0, upgrade.stdout + upgrade.stderr
    newest = look(f"sqlite:///{tmp_path}/none").newest
    assert f"0001 becomes {newest}" in upgrade.stdout
    assert schema(here.ledger) == "0001", "the installer itself changes no data"
    assert here.settings.read_text() == chosen
    assert here.settings.with_name("mammod.toml.new").read_bytes() == (release / "config/mammod.toml").read_bytes()
    assert len(here.versions()) == 2 and str(here.current.readlink()) == here.versions()[-1]

    # The new version takes the ledger over, every row of it.
    listed = here.mammod("jobs", "list", "--json", "--config", str(here.settings))
    assert listed.returncode == 0, listed.stderr
    assert [json.loads(line)["state"] for line in listed.stdout.splitlines()] == ["sending", "done"]
    assert (schema(here.ledger), kept(here.ledger)) == (newest, ROWS)

    # What is refused or fails leaves what is there.
    runs, before = str(here.current.readlink()), here.versions()
    broken = here.install("--offline", str(wheels), broken_pip=True)
    assert broken.returncode == 1 and f"{runs} stays" in broken.stderr
    set_schema(here.ledger, "9999")
    refused = here.install("--offline", str(wheels))
    assert refused.returncode == 1
    assert "written by a newer version" in refused.stderr and f"{runs} stays" in refused.stderr
    assert (str(here.current.readlink()), here.versions()) == (runs, before)
    assert (schema(here.ledger), kept(here.ledger)) == ("9999", ROWS)
    serve = here.mammod("serve", "--config", str(here.settings))
    assert (serve.returncode, serve.stderr.count("written by a newer version")) == (78, 1)
    assert "Traceback" not in serve.stderr
    set_schema(here.ledger, newest)

    # Only the one that runs and the one before it stay.
    assert here.install("--offline", str(wheels)).returncode == 0
    assert old not in here.versions() and len(here.versions()) == 2

    gone = here.script("--uninstall")
    assert gone.returncode == 0, gone.stderr
    assert not here.opt.exists()
    assert not [path for path in here.root.joinpath("usr").rglob("*") if path.is_file()]
    assert (here.settings.read_text(), kept(here.ledger)) == (chosen, ROWS)
    asked = here.script("--uninstall", "--purge", stdin="purge\n")
    assert asked.returncode == 1 and "Nothing was removed" in asked.stderr and here.ledger.exists()
    assert here.script("--uninstall", "--purge", "--yes").returncode == 0
    assert not here.settings.exists() and not here.ledger.exists()


def files_of(here: Installation) -> set[str]:
    (metadata,) = here.current.glob("lib/python*/site-packages/mammod-*.dist-info")
    return {str(file) for file in importlib.metadata.PathDistribution(metadata).files or []}


def test_a_ledger_of_the_first_schema_keeps_every_row(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    write_old_ledger(file)
    assert kept(file) == ROWS
    Ledger(f"sqlite:///{file}").close()
    assert schema(file) == look(f"sqlite:///{file}").newest != "0001"
    assert kept(file) == ROWS


def test_a_look_before_an_upgrade_refuses_settings_and_changes_nothing(tmp_path: Path) -> None:
    settings = tmp_path / "mammod.toml"
    ask = ["check", "--upgrade", "--config", str(settings)]
    settings.write_text("[listener]\nprot = 104\n")
    refused = CliRunner().invoke(app, ask)
    assert refused.exit_code == 78 and "listener.prot" in refused.output
    settings.write_text(f'[spool]\ndirectory = "{tmp_path}/spool"\n')
    fresh = CliRunner().invoke(app, ask)
    assert fresh.exit_code == 0 and fresh.output.startswith("ok"), fresh.output
    assert not (tmp_path / "spool").exists()
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/ledger.sqlite").write_bytes(b"no database" * 100)
    # Not known to be refused for good: the installer goes on, and the service says what it is.
    with pytest.raises(LedgerError):
        CliRunner().invoke(app, ask, catch_exceptions=False)


def test_a_dry_run_changes_nothing_and_says_what(tmp_path: Path) -> None:
    here = of(tmp_path)
    before = tree(tmp_path)
    said = here.install("--dry-run")
    assert said.returncode == 0, said.stderr
    for name in ("mammod.service", "mammod.toml", "current"):
        assert name in said.stdout
    assert here.script("--uninstall", "--purge", "--dry-run").returncode == 0
    assert tree(tmp_path) == before


def test_what_cannot_be_done_is_said_plainly(tmp_path: Path, wheels: Path) -> None:
    here = of(tmp_path)
    shortened = tmp_path / "bin"
    shortened.mkdir()
    (shortened / "df").write_text("#!/bin/sh\necho Avail; echo 17\n")
    (shortened / "df").chmod(0o755)
    other = tmp_path / "mammod-9.9.9-py3-none-any.whl"
    shutil.copy(next(wheels.glob("*.whl")), other)
    for arguments, path, expected in [
        (["--python", "/bin/false"], "", "not a Python 3.11"),
        (["--python", str(here.python)], str(shortened), "17 MiB free"),
        (["--python", str(here.python), "--extra", "nosuch"], "", "openvino, postgresql, s3 and ray are"),
        (["--python", str(here.python), "--wheel", str(other)], "", f"is not mammod {__version__}"),
        (["--python", str(here.python), "--wheel", "/nowhere.whl"], "", "there is no such file"),
        (["--python", str(here.python), "--offline", str(tmp_path)], "", f"no mammod-{__version__} wheel"),
        (["--frobnicate"], "", "there is no option --frobnicate"),
        (["--python"], "", "--python needs a value"),
        (["--purge"], "", "--purge goes with --uninstall"),
    ]:
        answer = here.script(*arguments, path=path)
        assert answer.returncode == 1, arguments
        assert expected in answer.stderr and not here.root.exists(), answer.stderr


def test_without_root_it_says_so(tmp_path: Path) -> None:
    command = [str(ROOT / "deploy/install.sh")]
    if os.getuid() == 0:
        # The checkout may lie where another user cannot look: the script comes by standard input.
        command = ["setpriv", "--reuid", "65534", "--clear-groups", "bash", "-s"]
    with (ROOT / "deploy/install.sh").open() as script:
        answer = subprocess.run(command, stdin=script, capture_output=True, text=True, cwd="/")
    assert answer.returncode == 1 and "run it as root" in answer.stderr, answer.stderr


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    said = subprocess.run([shellcheck, str(ROOT / "deploy/install.sh")], capture_output=True, text=True)
    assert said.stdout == ""


def packages() -> dict[str, set[str]]:
    """Packages by group, of deploy/packages.txt."""
    groups: dict[str, set[str]] = {}
    for line in (ROOT / "deploy/packages.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, *of_groups = line.split()
            for group in of_groups:
                groups.setdefault(group, set()).add(name)
    return groups


def closure(root: str, extra: str = "") -> set[str]:
    """What `root` needs here, by the metadata of what is installed."""
    found: dict[str, str] = {}  # the name of each requirement, with its extras
    ahead = [Requirement(f"{root}[{extra}]" if extra else root)]
    while ahead:
        requirement = ahead.pop()
        for line in importlib.metadata.distribution(requirement.name).requires or []:
            needed = Requirement(line)
            wanted = {"", *requirement.extras}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in wanted):
                name = canonicalize_name(needed.name)
                key = name + "".join(sorted(needed.extras))
                if key not in found:
                    found[key] = name
                    ahead.append(needed)
    names = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    return names & set(found.values())


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_packages_of_a_service_are_those_that_it_needs(extra: str) -> None:
    groups = packages()
    listed = groups["service"] | groups.get(extra, set())
    pins = locked()
    here = {
        name
        for name in listed
        if any(pin.marker is None or pin.marker.evaluate(dict(default_environment())) for pin in pins[name])
    }
    needed = closure("mammod", extra)
    assert not needed - listed
    # uv takes in what other systems and Pythons need too, not more.
    assert not here - needed - {"setuptools", "colorama", "tzdata"}


def test_every_group_is_of_the_lock_and_no_tool_is_in_a_service() -> None:
    groups = packages()
    assert set(groups) == {"service", "build", "setup", "demo", *EXTRAS}
    assert not set().union(*groups.values()) - set(locked())
    assert not groups["service"] & {"pytest", "ruff", "mypy", "moto", "ray", "hatchling"}
