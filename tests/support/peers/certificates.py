"""Certificates for tests of TLS, made with `cryptography`: authorities and what they sign, as PEM files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from config.settings import TLS

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Files:
    """PEM files of a certificate and its key; `serial` is the certificate's number."""

    certificate: Path
    key: Path
    serial: int

    def tls(self, ca: Path) -> TLS:
        """The `tls` setting with these, trusting `ca`."""
        return TLS(certificate=self.certificate, key=self.key, ca=ca)

    def replace(self, other: Files) -> None:
        """Put another certificate and key under the names of these, as an operator does."""
        for old, new in ((self.key, other.key), (self.certificate, other.certificate)):
            new.rename(old)


class Authority:
    """A CA with its own certificate in `folder`; every file's name begins with `name`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.file = folder / f"{name}.pem"
        certificate = _sign(self._name, self._key, self._name, self._key, timedelta(0), timedelta(days=30), is_ca=True)
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        kind: str = "rsa",
        bits: int = 2048,
        starts: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(days=90),
    ) -> Files:
        """A certificate for `name`, by its host name localhost; `starts` and `ends` count from now."""
        rsa_wanted = kind == "rsa"
        key = rsa.generate_private_key(65537, bits) if rsa_wanted else ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(_name(name), key, self._name, self._key, starts, ends, is_ca=False)
        files = Files(self._folder / f"{name}.pem", self._folder / f"{name}.key", certificate.serial_number)
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        files.key.chmod(0o600)
        return files


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _sign(
    subject: x509.Name,
    key: PrivateKey,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    starts: timedelta,
    ends: timedelta,
    is_ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(issuer_key, SHA256())
    )
