"""Why a host cannot be reached: its name, its port, then TLS, each tried alone, so that the answer names the one at fault."""

from __future__ import annotations

import socket
import ssl

# OpenSSL's X509_V_ERR_*, as `ssl.SSLCertVerificationError.verify_code` gives them.
_NOT_YET_VALID, _EXPIRED, _HOST_NAME = 9, 10, 62
_UNKNOWN_CA = (2, 7, 18, 19, 20, 21)  # 7: its CA has the name of one that we hold, and another key
# Only after its handshake does a TLS 1.3 server say that it does not want our certificate.
_ALERT_WAIT_S = 1.0


def why_not(host: str, port: int, tls: ssl.SSLContext | None, limit_s: float, setting: str) -> str | None:
    """What is wrong with the way to `host`:`port`, in plain words with what to do; None where a connection can be had.

    `setting` is the section's name, such as "archive": advice names its host, port and tls.
    """
    try:
        connection = socket.create_connection((host, port), timeout=limit_s)
    except socket.gaierror:
        return f"this machine finds no address for the name {host}; check {setting}'s host name, and DNS or /etc/hosts"
    except ConnectionRefusedError:
        return f"nothing listens on {host}:{port}; is it running, and is that its port?"
    except TimeoutError:
        return f"{host}:{port} gave no answer within {limit_s:g} s; is there a firewall between, or is the machine off?"
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
        return None  # it waits for our request, as it should
    except ssl.SSLCertVerificationError as error:
        return _why_not_trusted(error, host, setting)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "ALERT" in reason and any(what in reason for what in ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR")):
            words = reason.split("ALERT_")[-1].replace("_", " ").lower()
            return (
                f"it refuses our certificate ({words}); have the CA that signed {setting}.tls.certificate "
                "trusted there, or get a certificate that is"
            )
        if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            return f"it speaks no TLS on that port; set its TLS port, or leave {setting}.tls out"
        return f"the TLS handshake fails ({reason or error}); compare TLS versions and ciphers with SECURITY.md"
    except OSError:
        return (
            f"it ends the connection in the TLS handshake; either it speaks no TLS on that port, or it refuses "
            f"{setting}.tls.certificate: its log says which"
        )
    return None


def _why_not_trusted(error: ssl.SSLCertVerificationError, host: str, setting: str) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has ended; whoever runs it must replace it (or this machine's clock is wrong)"
    if code == _NOT_YET_VALID:
        return (
            "its certificate is not valid yet; set this machine's clock right, or wait for the certificate's first day"
        )
    if code == _HOST_NAME:
        return f"its certificate is not for the name {host}; use the name that it is for, or have it issued anew"
    if code in _UNKNOWN_CA:
        return f"its certificate is signed by a CA that {setting}.tls.ca does not hold; put that CA's certificate there"
    return f"its certificate is not trusted: {error.verify_message}"
