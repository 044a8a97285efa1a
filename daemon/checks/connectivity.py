"""Find out why a host cannot be reached: try its name, its port and TLS one after another."""

from __future__ import annotations

import socket
import ssl

# OpenSSL's X509_V_ERR_*, as `ssl.SSLCertVerificationError.verify_code` gives them.
_NOT_YET_VALID, _EXPIRED, _HOST_NAME = 9, 10, 62
_UNKNOWN_CA = (2, 7, 18, 19, 20, 21)  # 7: its CA has the name of one of ours, but another key
# A TLS 1.3 server rejects our certificate only after its handshake.
_ALERT_WAIT_S = 1.0


def why_not(host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float, setting: str) -> str | None:
    """Return why `host`:`port` cannot be reached and what to do, or None if it can.

    `setting` is the section of the settings, such as "archive", that the advice refers to.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror:
        return f"the name {host} cannot be resolved; check {setting}'s host name, and DNS or /etc/hosts"
    except ConnectionRefusedError:
        return f"nothing listens on {host}:{port}; is it running, and is that its port?"
    except TimeoutError:
        return f"{host}:{port} did not answer within {timeout_s:g} s; is a firewall in between, or is the machine off?"
    except OSError as error:
        return f"{host}:{port} cannot be reached: {error.strerror or error}; check the network"
    with connection:
        return None if tls is None else _why_no_tls(connection, host, tls, setting)


def _why_no_tls(connection: socket.socket, host: str, tls: ssl.SSLContext, setting: str) -> str | None:
    try:
        with tls.wrap_socket(connection, server_hostname=host) as secure:
            secure.settimeout(_ALERT_WAIT_S)
            secure.recv(1)
    except TimeoutError:
        return None  # it waits for our request, as expected
    except ssl.SSLCertVerificationError as error:
        return _why_not_trusted(error, host, setting)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "ALERT" in reason and any(what in reason for what in ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR")):
            words = reason.split("ALERT_")[-1].replace("_", " ").lower()
            return (
                f"it rejects our certificate ({words}); make it trust the CA that signed "
                f"{setting}.tls.certificate, or get a certificate that it trusts"
            )
        if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return f"it does not speak TLS on that port; set its TLS port, or remove {setting}.tls"
        return f"the TLS handshake fails ({reason or error}); compare TLS versions and ciphers with SECURITY.md"
    except OSError:
        return (
            f"it closes the connection during the TLS handshake: either it does not speak TLS on that port, or it "
            f"rejects {setting}.tls.certificate; see its log"
        )
    return None


def _why_not_trusted(error: ssl.SSLCertVerificationError, host: str, setting: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired; its operator must replace it (or this machine's clock is wrong)"
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet; correct this machine's clock, or wait for the certificate's first day"
    if code == _HOST_NAME:
        return f"its certificate is not for the name {host}; use the name in the certificate, or have it reissued"
    if code in _UNKNOWN_CA:
        return f"its certificate is signed by a CA that is not in {setting}.tls.ca; add that CA's certificate"
    return f"its certificate is not trusted: {error.verify_message}"
