"""The systemd unit, its user and its folders, as systemd's own programs read them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from config.loading import load_settings
from config.settings import Settings
from daemon.service import KILL_GRACE_S
from tests.support.installing import ROOT
from tests.support.peers.programs import missing

UNIT = ROOT / "deploy/mammod.service"


def of_systemd(name: str) -> str:
    return shutil.which(name) or missing(name, "systemd")


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def exposure(*files: Path, folder: Path) -> float:
    """The overall exposure of the unit with these drop-ins, by `systemd-analyze security --offline`."""
    drop_ins = folder / "mammod.service.d"
    drop_ins.mkdir(parents=True)
    shutil.copy(UNIT, folder)
    for file in files:
        shutil.copy(file, drop_ins)
    said = subprocess.run(
        [of_systemd("systemd-analyze"), "security", "--offline=true", "--no-pager", str(folder / UNIT.name)],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )  # fmt: skip
    found = re.search(r"Overall exposure level for mammod.service: ([\d.]+)", said.stdout)
    assert found, said.stdout + said.stderr
    return float(found[1])


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "mammod"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("/opt/mammod/current/bin/mammod", str(program)))
    said = subprocess.run(
        [of_systemd("systemd-analyze"), "verify", "--man=no", str(here)], capture_output=True, text=True
    )
    # It exits 0 on unknown keys: what it says counts, of this unit.
    assert [line for line in said.stderr.splitlines() if "mammod" in line] == []
    assert said.returncode == 0


def test_exposure_is_two_at_most(tmp_path: Path) -> None:
    assert exposure(folder=tmp_path / "plain") <= 2.0
    assert exposure(ROOT / "deploy/gpu.conf", folder=tmp_path / "gpu") <= 2.0


def test_the_unit_keeps_what_it_promises() -> None:
    service = unit()
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    assert service["RestartPreventExitStatus"] == str(os.EX_CONFIG)
    assert service["LimitCORE"] == "0" and int(service["LimitNOFILE"]) >= 65536 and service["MemoryMax"]
    # What TensorFlow's compiled code cannot live with.
    assert "MemoryDenyWriteExecute" not in service
    assert int(service["TimeoutStopSec"]) > Settings().service.shutdown_timeout_s + 3 * KILL_GRACE_S


def test_a_credential_of_the_unit_is_a_file_that_settings_may_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (identity, folder) = unit()["LoadCredential"].split(":")
    assert folder == "/etc/mammod/secrets"
    (tmp_path / f"{identity}_stow-token").write_text("abc\n")
    written = re.search(r'# dicomweb_token_file = "(.*)"', (ROOT / "config/mammod.toml").read_text())
    assert written
    file = tmp_path / "mammod.toml"
    file.write_text(
        f'[archive]\nstow_token_file = "{written[1]}"\n[listener]\n'
        'tls = {certificate = "/etc/c.pem", key = "$CREDENTIALS_DIRECTORY/secrets_key.pem", ca = "/etc/ca.pem"}\n'
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    token = load_settings(file).archive.dicomweb_token_file
    assert token is not None and token.read_text() == "abc\n"
    # `mammod check` by hand has no such variable; the running unit's are there.
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    tls = load_settings(file).listener.tls
    assert tls is not None
    assert (tls.key, tls.certificate) == (
        Path("/run/credentials/mammod.service/secrets_key.pem"),
        Path("/etc/c.pem"),
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
def test_the_user_and_its_folders_are_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for name in ("sysusers", "tmpfiles"):
        target = root / f"usr/lib/{name}.d/mammod.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(ROOT / f"deploy/{name}.conf", target)
    subprocess.run([of_systemd("systemd-sysusers"), f"--root={root}"], check=True, capture_output=True)
    (line,) = [line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("mammod:")]
    _, _, uid, gid, _, home, shell = line.split(":")
    assert (home, shell) == ("/var/lib/mammod", "/usr/sbin/nologin")
    subprocess.run([of_systemd("systemd-tmpfiles"), f"--root={root}", "--create"], check=True, capture_output=True)
    for name, mode, owner, group in [
        ("etc/mammod", 0o750, 0, int(gid)),
        ("etc/mammod/secrets", 0o700, 0, 0),
        ("var/lib/mammod", 0o700, int(uid), int(gid)),
    ]:
        found = (root / name).stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (mode, owner, group), name
