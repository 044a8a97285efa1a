"""TLS as the other side sees it: versions, suites and certificates accepted, refused, replaced and ending.

What is allowed is written here by hand from RFC 9325 4.2 and PS3.15 B.12; the other side is the `ssl` module
or openssl, told to offer exactly one thing.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from config.settings import Archive as ArchiveSettings
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.checks.certificates import certificate_findings
from daemon.errors import ArchiveError
from daemon.events.outcomes import Rejection, RejectionKind
from daemon.receiving.listener import Listener
from daemon.system.tls import Credentials, Side, expiries, warn_of_ends
from tests.support.peers.certificates import Authority, Files
from tests.support.peers.programs import wait_until
from tests.support.scu import (
    HOST,
    Accepted,
    encode,
    listener_settings,
    listening,
    mammogram,
    request_association,
    store,
)

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")

TAKEN = [  # suite of TLS 1.2, kind of the listener's certificate
    ("ECDHE-RSA-AES128-GCM-SHA256", "rsa"),
    ("ECDHE-RSA-AES256-GCM-SHA384", "rsa"),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "ec"),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "ec"),
]
REFUSED = [
    "ECDHE-RSA-AES128-SHA",  # CBC with SHA-1
    "ECDHE-RSA-AES256-SHA384",  # CBC
    "AES128-GCM-SHA256",  # the key in transit under the server's RSA key: no forward secrecy
    "AES128-SHA",
    "DHE-RSA-AES128-GCM-SHA256",  # finite field: RFC 9325 4.1
    "NULL-SHA256",
    "AECDH-AES128-SHA",  # nobody shows a certificate
]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificates(ca: Authority) -> dict[str, Files]:
    other = Authority(ca.file.parent, "other-ca")
    return {
        "rsa": ca.issue("server-rsa"),
        "ec": ca.issue("server-ec", kind="ec"),
        "client": ca.issue("client"),
        "stranger": other.issue("stranger"),
        "ended": ca.issue("ended", starts=timedelta(days=-9), ends=timedelta(minutes=-5)),
        "not begun": ca.issue("not-begun", starts=timedelta(days=1)),
        "short key": ca.issue("short-key", bits=1024),
    }


class Kept(list[Rejection]):
    """Rejections, as the listener tells them."""

    def __call__(self, rejection: Rejection) -> None:
        self.append(rejection)


@pytest.fixture
def rejections() -> Kept:
    return Kept()


@contextmanager
def tls_listener(files: Files, ca: Authority, folder: Path, rejections: Kept) -> Iterator[Listener]:
    settings = listener_settings(tls=files.tls(ca.file))
    accepted = Accepted(folder / "accepted")
    with listening(Listener(settings, folder / "incoming", accepted, on_rejection=rejections)) as listener:
        yield listener


def client(ca: Authority, files: Files | None, suite: str | None = None) -> ssl.SSLContext:
    """A client that would do anything, but for what it is told to offer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca.file)
    context.set_ciphers((suite or "ALL") + ":@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    if suite:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def handshake(port: int, context: ssl.SSLContext) -> tuple[str, str, int]:
    """Version, suite and the listener's certificate number; ssl.SSLError or OSError where it was refused.

    In TLS 1.3 a client learns of its refusal only when it reads: something that is answered shows that it was
    let in.
    """
    with socket.create_connection((HOST, port), timeout=10) as raw, context.wrap_socket(raw) as connection:
        cipher, version = connection.cipher(), connection.version()
        assert cipher is not None and version is not None
        connection.sendall(
            bytes.fromhex("05 00 00000004 00000000")
        )  # A-RELEASE-RQ without an association: the answer is an A-ABORT
        if not connection.recv(10).startswith(b"\x07"):
            raise ConnectionError("not let in")
        shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        return version, cipher[0], x509.load_der_x509_certificate(shown).serial_number


# --- the listener ---


@pytest.mark.parametrize(("version", "taken"), [("TLSv1", 0), ("TLSv1_1", 0), ("TLSv1_2", 1), ("TLSv1_3", 1)])
def test_versions(
    version: str, taken: bool, ca: Authority, certificates: dict[str, Files], tmp_path: Path, rejections: Kept
) -> None:
    context = client(ca, certificates["client"])
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with tls_listener(certificates["rsa"], ca, tmp_path, rejections) as listener:
        if taken:
            assert handshake(listener.port, context)[0] == version.replace("_", ".")
            return
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS"):
            handshake(listener.port, context)
        wait_until(lambda: listener.rejected["tls"] == 1, "the refusal is counted")


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_suites_of_the_profile_are_taken_and_no_other(
    kind: str, ca: Authority, certificates: dict[str, Files], tmp_path: Path, rejections: Kept
) -> None:
    with tls_listener(certificates[kind], ca, tmp_path, rejections) as listener:
        for suite in (suite for suite, needs in TAKEN if needs == kind):
            assert handshake(listener.port, client(ca, certificates["client"], suite))[1] == suite
        for suite in REFUSED:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(listener.port, client(ca, certificates["client"], suite))
        wait_until(lambda: listener.rejected["tls"] == len(REFUSED), "each refusal is counted")


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("name", [None, "stranger", "ended", "not begun", "short key"])
def test_a_caller_without_a_good_certificate_is_refused_counted_and_named(
    name: str | None,
    version: str,
    ca: Authority,
    certificates: dict[str, Files],
    tmp_path: Path,
    rejections: Kept,
) -> None:
    context = client(ca, certificates[name] if name else None)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with capture_logs() as events, tls_listener(certificates["rsa"], ca, tmp_path, rejections) as listener:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(listener.port, context)
        wait_until(lambda: rejections, "the refusal is told")
        assert listener.rejected["tls"] == 1
    (rejection,) = rejections
    assert (rejection.kind, rejection.address, rejection.calling_ae) == (RejectionKind.TLS, HOST, "")
    assert [event["address"] for event in events if event["event"] == "connection closed before an association"] == [
        HOST
    ]


def test_a_check_by_tcp_alone_is_no_security_alert(
    ca: Authority, certificates: dict[str, Files], tmp_path: Path, rejections: Kept
) -> None:
    with tls_listener(certificates["rsa"], ca, tmp_path, rejections) as listener:
        socket.create_connection((HOST, listener.port), timeout=10).close()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(listener.port, client(ca, None))
        wait_until(lambda: rejections, "the handshake after it is refused")
        assert listener.rejected["tls"] == 1
    assert len(rejections) == 1


def test_certificates_replaced_while_running_are_shown_to_the_next_caller_and_open_associations_go_on(
    ca: Authority, certificates: dict[str, Files], tmp_path: Path, rejections: Kept
) -> None:
    first = Authority(tmp_path / "own", "first")
    server, caller = first.issue("server"), first.issue("caller")
    with capture_logs() as events, tls_listener(server, first, tmp_path, rejections) as listener:
        open_before = request_association(listener.port, tls=client(first, caller))
        assert open_before.is_established
        assert handshake(listener.port, client(first, caller))[2] == server.serial

        server.certificate.write_text("half of a file")
        for _ in range(2):
            assert handshake(listener.port, client(first, caller))[2] == server.serial, "the last usable stays in force"
        assert len([event for event in events if event["log_level"] == "error"]) == 1, "said once"

        renewed = first.issue("renewed")
        server.replace(renewed)
        assert handshake(listener.port, client(first, caller))[2] == renewed.serial

        first.file.write_bytes(ca.file.read_bytes())  # from now on another authority signs callers
        listener.reread_certificates()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(listener.port, client(Authority(tmp_path / "unused"), caller))
        assert store(open_before, encode(mammogram()), mammogram().SOPInstanceUID).Status == 0x0000
        open_before.release()


# --- the outgoing side ---


class Server:
    """A TLS server that is limited only by its context.

    `told` is how each handshake ended, `shown` are the numbers of the certificates that its callers showed.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.told: list[str] = []
        self.shown: list[int] = []
        self._context = context
        self._listening = socket.create_server((HOST, 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            raw.settimeout(10)
            try:
                with self._context.wrap_socket(raw, server_side=True) as connection:
                    connection.recv(1)
                    shown = connection.getpeercert(binary_form=True)
                    self.shown += [x509.load_der_x509_certificate(shown).serial_number] if shown else []
                    self.told.append(str(connection.version()))
            except OSError as error:
                self.told.append(type(error).__name__)
            raw.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)


def server_context(files: Files, ca: Authority, suite: str = "ALL") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers(suite + ":@SECLEVEL=0")
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(ca.file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[Server]:
    server = Server(context)
    try:
        yield server
    finally:
        server.close()


def call(port: int, files: Files, ca: Authority, folder: Path) -> str:
    """What our side says of an archive that hears everything and answers nothing."""
    settings = ArchiveSettings(host=HOST, port=port, tls=files.tls(ca.file), timeout_s=2)
    with pytest.raises(ArchiveError) as refused:
        Archive(settings, "MAMMOD", folder).echo()
    return str(refused.value)


@pytest.mark.parametrize("version", ["TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_we_call_by_tls_1_2_or_1_3_only(
    version: str, ca: Authority, certificates: dict[str, Files], tmp_path: Path
) -> None:
    context = server_context(certificates["rsa"], ca)
    context.maximum_version = ssl.TLSVersion[version]
    with serving(context) as server:
        said = call(server.port, certificates["client"], ca, tmp_path)
        wait_until(lambda: server.told, "the handshake is over")
        if version == "TLSv1_1":
            assert server.told == ["SSLError"]
            assert "failed the TLS handshake" in said
        else:
            assert server.told == [version.replace("_", ".")], "it was our certificate that was asked for and shown"


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256"])
def test_we_call_with_no_weak_suite(suite: str, ca: Authority, certificates: dict[str, Files], tmp_path: Path) -> None:
    context = server_context(certificates["rsa"], ca, suite)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(context) as server:
        assert "failed the TLS handshake" in call(server.port, certificates["client"], ca, tmp_path)
        assert "TLSv1.2" not in server.told


@pytest.mark.parametrize("name", ["stranger", "ended", "not begun", "short key"])
def test_we_do_not_talk_to_an_archive_without_a_good_certificate(
    name: str, ca: Authority, certificates: dict[str, Files], tmp_path: Path
) -> None:
    with serving(server_context(certificates[name], ca)) as server:
        assert "failed the TLS handshake" in call(server.port, certificates["client"], ca, tmp_path)
        wait_until(lambda: server.told, "the handshake is over")
        assert server.told[0] not in ("TLSv1.2", "TLSv1.3")


def test_our_certificate_for_the_archive_is_replaced_while_running(tmp_path: Path) -> None:
    own, other = Authority(tmp_path, "own"), Authority(tmp_path, "other")
    ours, theirs = own.issue("ours"), own.issue("theirs")
    with serving(server_context(theirs, own)) as server:
        settings = ArchiveSettings(host=HOST, port=server.port, tls=ours.tls(own.file), timeout_s=2)
        archive = Archive(settings, "MAMMOD", tmp_path)

        def called() -> str:
            before = len(server.told)
            with pytest.raises(ArchiveError) as refused:  # it hears everything and answers nothing
                archive.echo()
            wait_until(lambda: len(server.told) > before, "the handshake is over")
            return str(refused.value)

        called()
        assert server.shown == [ours.serial]
        first = ours.serial
        ours.certificate.write_text("half of a file")
        called()
        assert server.shown == [first, first], "the last usable stays in force"
        renewed = own.issue("renewed")
        ours.replace(renewed)
        called()
        assert server.shown == [first, first, renewed.serial]
        own.file.write_bytes(other.file.read_bytes())  # from now on another authority signs archives
        assert "failed the TLS handshake" in called()
        assert len(server.shown) == 3


def test_host_name_is_compared_where_a_web_server_is_called(ca: Authority, certificates: dict[str, Files]) -> None:
    settings = certificates["client"].tls(ca.file)
    assert Credentials(settings, "archive.tls", Side.CALL_HOST).context().check_hostname
    assert not Credentials(settings, "archive.tls", Side.CALL).context().check_hostname


# --- when certificates end ---


def test_a_file_of_certificates_is_read_once_until_it_changes(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics and status page ask every few seconds."""
    read: list[bytes] = []
    load = x509.load_pem_x509_certificates

    def counted(content: bytes) -> list[x509.Certificate]:
        read.append(content)
        return load(content)

    monkeypatch.setattr("daemon.system.tls.x509.load_pem_x509_certificates", counted)
    own = Authority(tmp_path, "own")
    files = own.issue("server", ends=timedelta(days=5))
    settings = Settings(listener={"tls": files.tls(own.file)})
    before = [expiries(settings) for _ in range(5)]
    assert len(read) == 2, "certificate and CA"
    assert all(found == before[0] for found in before)
    files.replace(own.issue("renewed", ends=timedelta(days=50)))
    now = datetime.now(UTC)
    assert [round(found[0].days_left(now)) for found in (before[0], expiries(settings))] == [5, 50]
    assert len(read) == 3
    files.certificate.unlink()
    assert [one.setting for one in expiries(settings)] == ["listener.tls.ca"]


@pytest.mark.parametrize(
    ("days", "level", "said"),
    [(29, "warning", "certificate ends soon"), (-1, "error", "certificate has ended"), (60, None, "")],
)
def test_the_end_of_a_certificate_is_said_before_it_comes(
    days: int, level: str | None, said: str, ca: Authority, certificates: dict[str, Files]
) -> None:
    files = ca.issue(f"ends-{days}", kind="ec", starts=timedelta(days=-40), ends=timedelta(days=days, hours=1))
    settings = Settings(listener={"tls": files.tls(certificates["client"].certificate)})
    found = expiries(settings)
    assert [(one.setting, one.file) for one in found] == [
        ("listener.tls.certificate", files.certificate),
        ("listener.tls.ca", certificates["client"].certificate),
    ]
    assert found[0].days_left(datetime.now(UTC)) == pytest.approx(days + 1 / 24, abs=0.01)
    with capture_logs() as events:
        warn_of_ends(found)
    assert [event["log_level"] for event in events] == ([level] if level else [])
    if level:
        assert said in events[0]["event"]
        assert events[0]["setting"] == "listener.tls.certificate"


def test_check_says_what_is_wrong_with_certificates_and_keys(ca: Authority, certificates: dict[str, Files]) -> None:
    open_key = ca.issue("open-key", kind="ec")
    open_key.key.chmod(0o644)
    missing = certificates["client"].tls(ca.file.with_name("missing.pem"))
    settings = Settings(
        listener={"tls": certificates["ended"].tls(ca.file)},
        archive={"tls": open_key.tls(ca.file)},
        audit={"tls": missing},
    )
    said = {(finding.subject, finding.good): finding.text for finding in certificate_findings(settings)}
    assert "replace it" in said["listener.tls.certificate", False]
    assert "chmod o-r" in said["archive.tls.key", False]
    assert "missing.pem" in said["audit.tls", False]
    assert ("archive.tls.certificate", True) in said
