"""TLS of every connection that mammod accepts or opens, by one profile.

The profile is PS3.15 B.12 (BCP 195 of RFC 8996 and RFC 9325): TLS 1.2 with the suites that RFC 9325 4.2
recommends, or TLS 1.3; keys of 112 bits of security (RSA 2048, ECC 224) and no SHA-1 signatures. Peers of the
older profiles B.9 and B.10 support it, too, unless they insist on DHE, which RFC 9325 advises against. Both
sides show a certificate.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path

import structlog
from cryptography import x509

from config.errors import ConfigurationError
from config.settings import TLS, Settings
from daemon.system.file_stamp import FileStamp, file_stamp

SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
WARN_DAYS = 30  # before a certificate ends

log = structlog.get_logger()


class Side(Enum):
    """Which side of a connection we are.

    ACCEPT: a listener. CALL: we call a DICOM node, known by its certificate and AE title. CALL_HOST: its host
        name is compared, too.
    """

    ACCEPT = "accept"
    CALL = "call"
    CALL_HOST = "call host"


class Credentials:
    """The certificate, key and CA files of the setting called `name` as a TLS context, re-read on changes.

    Connections keep the context they started with. If the files cannot be used, the last usable ones stay in
    force, and an error is logged once.

    Raises:
        ConfigurationError: a file cannot be used at the start.
    """

    def __init__(self, settings: TLS, name: str, side: Side) -> None:
        self.settings = settings
        self._name = name
        self._side = side
        self._lock = threading.Lock()
        self._seen = _signature(settings)
        self._context = _context(settings, name, side)

    def context(self) -> ssl.SSLContext:
        """Return the context for the next connection; it costs three stat calls if nothing has changed."""
        with self._lock:
            now = _signature(self.settings)
            if now != self._seen:
                self._seen = now
                try:
                    self._context = _context(self.settings, self._name, self._side)
                except ConfigurationError as error:
                    log.error("TLS files not re-read, the old ones stay in force", reason=str(error))
                else:
                    log.info("TLS files re-read", setting=self._name)
            return self._context


def public_context() -> ssl.SSLContext:
    """Return a context for a web server known by host name and the system's CAs; we show no certificate."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _signature(settings: TLS) -> tuple[FileStamp | None, ...]:
    return tuple(file_stamp(path) for path in (settings.certificate, settings.key, settings.ca))


def _context(tls: TLS, name: str, side: Side) -> ssl.SSLContext:
    accepts = side is Side.ACCEPT
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepts else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(SUITES) + ":@SECLEVEL=2")  # those of TLS 1.3 are all in the profile
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.check_hostname = side is Side.CALL_HOST
    context.verify_mode = ssl.CERT_REQUIRED
    if accepts:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
        context.num_tickets = 0  # a session taken up again would not show its certificate
    try:
        context.load_verify_locations(tls.ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"{name}.ca = {str(tls.ca)!r}: {_plain(error, tls.ca)}; "
            "name a PEM file with the CA certificates that sign the other side's"
        ) from error
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")  # never ask on the terminal
    except OSError as error:
        raise ConfigurationError(
            f"{name}.certificate = {str(tls.certificate)!r}, {name}.key = {str(tls.key)!r}: "
            f"{_plain(error, tls.certificate, tls.key)}; "
            "name the PEM files of a certificate and its private key without a password"
        ) from error
    return context


_PLAIN_REASONS = {  # by OpenSSL's reason
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "KEY_TYPE_MISMATCH": "the key is not that of the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "it holds no certificate",
    "EE_KEY_TOO_SMALL": "its key is too short: RSA of 2048 bits, or ECC of 224",
}


def _plain(error: OSError, certificate: Path, key: Path | None = None) -> str:
    """Return in plain words what is wrong with files of which OpenSSL often says "PEM lib" only."""
    for file in filter(None, (certificate, key)):
        try:
            content = file.read_bytes()
        except OSError as at_fault:
            return f"{file.name}: {at_fault.strerror}"
        if b"-----BEGIN" not in content:
            return f"{file.name} is no PEM file"
        if file == key and b"ENCRYPTED" in content:
            return "the key has a password"
    return _PLAIN_REASONS.get(getattr(error, "reason", None) or "", str(error))


# --- when certificates end ---


@dataclass(frozen=True)
class Expiry:
    """The certificate of a file that ends first; `ends` is in UTC."""

    setting: str
    file: Path
    ends: datetime

    def days_left(self, now: datetime) -> float:
        """Return the days until it ends, negative if it has ended."""
        return (self.ends - now).total_seconds() / 86_400


def expiries(settings: Settings) -> list[Expiry]:
    """Return the first end in each certificate file of the settings, without unreadable files."""
    return [
        Expiry(setting, file, end)
        for setting, file in _certificate_files(settings)
        if (seen := file_stamp(file)) is not None and (end := _first_end(file, seen)) is not None
    ]


def _certificate_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    for section in ("listener", "archive", "audit"):
        tls: TLS | None = getattr(getattr(settings, section, None), "tls", None)
        if tls is not None:
            yield f"{section}.tls.certificate", tls.certificate
            yield f"{section}.tls.ca", tls.ca


@lru_cache(maxsize=32)
def _first_end(file: Path, _seen: tuple[int, ...]) -> datetime | None:
    """Return the first end of a file's certificates, cached per file state: metrics ask every few seconds."""
    try:
        certificates = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError):
        return None
    return min(certificate.not_valid_after_utc for certificate in certificates)


def warn_of_ends(found: Iterable[Expiry]) -> None:
    """Log certificates that end within `WARN_DAYS` days or have ended."""
    now = datetime.now(UTC)
    for expiry in found:
        days = expiry.days_left(now)
        if days < 0:
            log.error("certificate has ended: replace it", setting=expiry.setting, ended=expiry.ends.isoformat())
        elif days < WARN_DAYS:
            log.warning(
                "certificate ends soon: replace it",
                setting=expiry.setting,
                ends=expiry.ends.isoformat(),
                days=int(days),
            )
