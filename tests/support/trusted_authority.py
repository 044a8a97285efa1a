"""Certificates for the TLS tests, made by openssl: a CA that signed `server` and `client`."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.peers.programs import program


@dataclass(frozen=True)
class TlsFiles:
    folder: Path

    @property
    def server(self) -> dict[str, Path]:
        """The listener's `tls` settings."""
        return {
            "certificate": self.folder / "server.pem",
            "key": self.folder / "server.key",
            "ca": self.folder / "ca.pem",
        }

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.folder / "ca.pem")
        context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return context


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("tls")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-x509", "-days", "2")
    for name in ("ca", "server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE")
        arguments = [*new, "-subj", f"/CN={name}", *(() if name == "ca" else signed)]
        command = [program("openssl"), *arguments, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return TlsFiles(folder)
