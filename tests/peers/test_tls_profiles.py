"""The security profiles of DCMTK (PS3.15 annex B), both ways: those of BCP 195 are spoken, older ones not."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.errors import ArchiveError
from daemon.receiving.listener import Listener
from tests.support.peers.certificates import Authority, Files
from tests.support.peers.programs import free_port, program, running
from tests.support.scu import HOST, Accepted, listener_settings, listening

pytestmark = pytest.mark.peers

PROFILES = {
    "non-downgrading BCP 195": ("+py", True),
    "BCP 195": ("+px", True),
    "extended BCP 195": ("+pz", True),
    "AES, retired": ("+pa", False),
    "authenticated without encryption, retired": ("+pn", False),
}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="module")
def files(ca: Authority) -> tuple[Files, Files]:
    """Ours and theirs."""
    return ca.issue("ours"), ca.issue("theirs")


def listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True


def options(files: Files, ca: Authority, profile: str) -> list[str]:
    return ["+tls", str(files.key), str(files.certificate), "+cf", str(ca.file), profile]


@pytest.mark.parametrize(("profile", "spoken"), PROFILES.values(), ids=list(PROFILES))
def test_a_caller_by_profile(
    profile: str, spoken: bool, ca: Authority, files: tuple[Files, Files], tmp_path: Path
) -> None:
    ours, theirs = files
    settings = listener_settings(tls=ours.tls(ca.file))
    with listening(Listener(settings, tmp_path / "incoming", Accepted(tmp_path / "accepted"))) as listener:
        caller = [program("echoscu"), "-v", "-aec", "MAMMOD", *options(theirs, ca, profile), HOST, str(listener.port)]
        done = subprocess.run(caller, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == spoken, done.stderr
        assert ("Received Echo Response (Success)" in done.stderr) == spoken
        assert listener.rejected["tls"] == (not spoken)


@pytest.mark.parametrize(("profile", "spoken"), PROFILES.values(), ids=list(PROFILES))
def test_an_archive_by_profile(
    profile: str, spoken: bool, ca: Authority, files: tuple[Files, Files], tmp_path: Path
) -> None:
    ours, theirs = files
    port = free_port()
    archive = [program("storescp"), "-aet", "STORESCP", *options(theirs, ca, profile), "-od", str(tmp_path), str(port)]
    settings = ArchiveSettings(ae_title="STORESCP", host=HOST, port=port, tls=ours.tls(ca.file), timeout_s=10)
    with running(archive, tmp_path / "storescp.log", lambda: listens(port)):
        client = Archive(settings, "MAMMOD", tmp_path)
        if spoken:
            client.echo()
        else:
            with pytest.raises(ArchiveError, match="failed the TLS handshake"):
                client.echo()
