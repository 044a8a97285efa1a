"""The listener as a sender sees it: what is answered to whom, and what is in the folder afterwards."""

from __future__ import annotations

import base64
import errno
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AllStoragePresentationContexts
from structlog.testing import capture_logs

from config.errors import ConfigurationError
from config.settings import Peer
from daemon.dicom.sop_classes import storage_classes
from daemon.dimse.presentation_contexts import choose_transfer_syntax
from daemon.errors import RefusedInstance
from daemon.events.outcomes import Rejection
from daemon.receiving.admission import Admission, AssociationRequest, Rejected
from daemon.receiving.listener import Listener
from daemon.storage.received_instance import ReceivedInstance
from tests.support.peers.programs import answers_echo, program, wait_until
from tests.support.scu import (
    EXPLICIT,
    HOST,
    IMPLICIT,
    MAMMOGRAM,
    Accepted,
    data_set_bytes,
    encode,
    listener_settings,
    listening,
    mammogram,
    request_association,
    store,
    store_in_part,
)

BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
UID = mammogram().SOPInstanceUID
GOOD = encode(mammogram())

# What these tests do on purpose: UIDs that are none, TLS 1.0.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* VR UI"),
    pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning"),
]


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_echo(listener: Listener) -> None:
    assert answers_echo(listener.port, "MAMMOD")


def test_instance_is_handed_over_as_a_part_10_file_with_the_bytes_sent(listener: Listener, accepted: Accepted) -> None:
    association = request_association(listener.port)
    assert store(association, GOOD, UID).Status == 0x0000
    association.release()
    assert accepted == [
        ReceivedInstance(
            path=accepted[0].path,
            sop_class_uid=MAMMOGRAM,
            sop_instance_uid=UID,
            transfer_syntax_uid=EXPLICIT,
            calling_ae="MODALITY",
            called_ae="MAMMOD",
            peer_address=HOST,
            association_id=accepted[0].association_id,
            study_uid="1.2.826.0.1.3680043.8.498.1000",
            series_uid="1.2.826.0.1.3680043.8.498.1001",
            digest="blake3-" + base64.urlsafe_b64encode(blake3(GOOD).digest()).decode().rstrip("="),
        )
    ]
    file = accepted.file(UID)
    assert data_set_bytes(file) == GOOD
    assert file.stat().st_mode & 0o777 == 0o600
    meta = pydicom.dcmread(file).file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (MAMMOGRAM, UID)
    assert meta.TransferSyntaxUID == EXPLICIT


def test_success_is_answered_only_after_accept_returned(incoming: Path) -> None:
    asked, answered, may_return = threading.Event(), threading.Event(), threading.Event()

    def accept(_: ReceivedInstance) -> None:
        asked.set()
        assert may_return.wait(20)

    with listening(Listener(listener_settings(), incoming, accept)) as listener:
        association = request_association(listener.port)

        def send() -> None:
            assert store(association, GOOD, UID).Status == 0x0000
            answered.set()

        sender = threading.Thread(target=send)
        sender.start()
        assert asked.wait(20)
        assert not answered.wait(0.2)
        may_return.set()
        assert answered.wait(20)
        sender.join()
        association.release()
    assert is_empty(incoming)


# --- bad instances
# ---------------------------------------------------------------------------------------------------


def without(keyword: str) -> bytes:
    dataset = mammogram()
    del dataset[keyword]
    return encode(dataset)


BAD = {
    "cut": (GOOD[:-100], UID, MAMMOGRAM, 0xC000),
    "random bytes": (os.urandom(5000), UID, MAMMOGRAM, 0xC000),
    "web page": (b"<html><body>Not found</body></html>" * 10, UID, MAMMOGRAM, 0xC000),
    "other transfer syntax": (encode(mammogram(), IMPLICIT), UID, MAMMOGRAM, 0xC000),
    "no data set": (None, UID, MAMMOGRAM, 0xC000),
    "no SOP Instance UID in the data set": (without("SOPInstanceUID"), UID, MAMMOGRAM, 0xA900),
    "other SOP Instance UID in the data set": (encode(mammogram(2)), UID, MAMMOGRAM, 0xA900),
    "other SOP Class in the data set": (GOOD.replace(b".1.1.1.2\0", b".1.1.1.3\0"), UID, MAMMOGRAM, 0xA900),
    "UID that climbs": (GOOD, "../../../etc/passwd", MAMMOGRAM, 0x0117),
    "UID of 65 characters": (GOOD, "1." * 32 + "1", MAMMOGRAM, 0x0117),
    "UID of 200 characters": (GOOD, "1." * 99 + "11", MAMMOGRAM, 0x0117),
    "neither is a UID": (GOOD, "9" * 100, "1..2" * 30, 0x0117),
    "two UIDs": (GOOD, "1.2.3\\1.2.4", MAMMOGRAM, 0x0117),
    "no UID in the request": (GOOD, None, MAMMOGRAM, 0x0117),
    "no SOP Class in the request": (GOOD, UID, None, 0x0117),
    "SOP Class of another context": (GOOD, UID, SEGMENTATION, 0x0122),
    "SOP Class nobody knows": (GOOD, UID, "1.2.3.4", 0x0122),
}


@pytest.mark.parametrize(("content", "uid", "sop_class", "status"), BAD.values(), ids=list(BAD))
def test_bad_instance_gets_its_status_and_the_next_good_one_passes(
    listener: Listener,
    incoming: Path,
    accepted: Accepted,
    content: bytes | None,
    uid: str | None,
    sop_class: str | None,
    status: int,
) -> None:
    with capture_logs() as events:
        association = request_association(listener.port)
        answer = store(association, content, uid, sop_class)
        assert answer.Status == status
        assert 0 < len(answer.ErrorComment) <= 64
        assert is_empty(incoming)
        assert store(association, encode(mammogram(9)), mammogram(9).SOPInstanceUID).Status == 0x0000
        association.release()
        wait_until(lambda: events[-1]["event"] == "association ended", "the association's end is logged")
    assert [one.sop_instance_uid for one in accepted] == [mammogram(9).SOPInstanceUID]
    assert is_empty(incoming)
    (refused,) = (event for event in events if event["event"] == "instance refused")
    assert refused["status"] == f"{status:04X}"
    assert refused["association"] == accepted[0].association_id
    assert (refused["calling_ae"], refused["address"]) == ("MODALITY", HOST)
    assert (events[-1]["how"], events[-1]["stored"], events[-1]["refused"]) == ("released", 1, 1)
    assert "Doe" not in str(events)
    assert "4711" not in str(events)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RefusedInstance(0xC123, "not today"), 0xC123),
        (OSError(errno.ENOSPC, "No space left on device"), 0xA700),
        (OSError(errno.EIO, "Input/output error"), 0x0110),
        (KeyError("a defect"), 0x0110),
    ],
)
def test_failures_of_accept_have_their_status(incoming: Path, error: Exception, status: int) -> None:
    failures = [error]

    def accept(_: ReceivedInstance) -> None:
        if failures:
            raise failures.pop()

    with capture_logs() as events, listening(Listener(listener_settings(), incoming, accept)) as listener:
        association = request_association(listener.port)
        assert store(association, GOOD, UID).Status == status
        assert store(association, GOOD, UID).Status == 0x0000
        association.release()
    assert is_empty(incoming)
    tracebacks = [event for event in events if event.get("exc_info")]
    assert len(tracebacks) == (status == 0x0110)


def test_full_disk_while_receiving_is_out_of_resources(
    incoming: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set is received to its end and dropped, so that the association goes on."""
    full = [True]
    real_open = os.open

    def no_room(path: Path, *arguments: int) -> int:
        if Path(path).suffix == ".part" and full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, *arguments)

    with listening(Listener(listener_settings(), incoming, accepted)) as listener:
        association = request_association(listener.port)
        monkeypatch.setattr("daemon.dimse.instance_writer.os.open", no_room)
        assert store(association, GOOD, UID).Status == 0xA700
        full.clear()
        assert store(association, GOOD, UID).Status == 0x0000
        association.release()


def test_cut_transfer_leaves_nothing(listener: Listener, incoming: Path, accepted: Accepted) -> None:
    association = request_association(listener.port)
    store_in_part(association, encode(mammogram(size=512)), UID)
    wait_until(lambda: not is_empty(incoming), "the data set is being received")
    association.abort()
    wait_until(lambda: is_empty(incoming), "the half-received file is removed")
    assert accepted == []
    assert answers_echo(listener.port, "MAMMOD")


# --- who may associate
# -----------------------------------------------------------------------------------------------

PEERS = [
    {"ae_title": "HERE", "networks": ["10.0.0.0/8", "127.0.0.0/8"]},
    {"ae_title": "ELSEWHERE", "networks": ["10.0.0.0/8"]},
    {"ae_title": "ANYWHERE"},
]


@pytest.mark.parametrize(
    ("settings", "called", "calling", "rejection"),
    [
        ({}, "OTHER", "MODALITY", (1, 1, 7)),
        ({}, "MAMMOD", "MODALITY", None),
        ({"called_ae_required": False}, "OTHER", "MODALITY", None),
        ({"ae_title": "CLASSIFIER"}, "CLASSIFIER", "MODALITY", None),
        ({"peers": PEERS}, "MAMMOD", "HERE", None),
        ({"peers": PEERS}, "MAMMOD", "ANYWHERE", None),
        ({"peers": PEERS}, "MAMMOD", "ELSEWHERE", (1, 1, 3)),
        ({"peers": PEERS}, "MAMMOD", "MODALITY", (1, 1, 3)),
        ({"peers": PEERS}, "OTHER", "MODALITY", (1, 1, 7)),
    ],
)
def test_rules_of_titles_and_networks(
    incoming: Path,
    accepted: Accepted,
    settings: dict[str, object],
    called: str,
    calling: str,
    rejection: tuple[int, int, int] | None,
) -> None:
    """Result, source and reason as PS3.8 table 9-21 numbers them, read from the A-ASSOCIATE-RJ."""
    with listening(Listener(listener_settings(**settings), incoming, accepted)) as listener:
        assert rejection_of(listener.port, called, calling) == rejection


def rejection_of(port: int, called: str = "MAMMOD", calling: str = "MODALITY") -> tuple[int, int, int] | None:
    association = request_association(port, called=called, calling=calling)
    if association.is_established:
        association.release()
        return None
    answer = association.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


@pytest.mark.parametrize(("may", "echo", "stored"), [(["echo"], 0, 1), (["store"], 1, 0), (["echo", "store"], 0, 0)])
def test_a_peer_may_do_what_its_entry_says(
    incoming: Path, accepted: Accepted, may: list[str], echo: int, stored: int
) -> None:
    """The results by context (PS3.8 table 9-18): 0 acceptance, 1 rejected by user, 3 unknown class."""
    peers = [{"ae_title": "MODALITY", "networks": ["127.0.0.0/8"], "permissions": may}]
    with listening(Listener(listener_settings(peers=peers), incoming, accepted)) as listener:
        offers = [("1.2.840.10008.1.1", [IMPLICIT]), (MAMMOGRAM, [EXPLICIT]), ("1.2.3.4", [IMPLICIT])]
        association = request_association(listener.port, offers)
        results = {str(one.abstract_syntax): one.result for one in association.accepted_contexts}
        results |= {str(one.abstract_syntax): one.result for one in association.rejected_contexts}
        assert results == {"1.2.840.10008.1.1": echo, MAMMOGRAM: stored, "1.2.3.4": 3}
        association.release()
        assert listener.rejected["not_permitted"] == echo + stored


def test_who_is_not_let_in_is_counted_by_kind_and_told(incoming: Path, accepted: Accepted) -> None:
    told: list[Rejection] = []
    settings = listener_settings(peers=PEERS, max_associations=1)
    with listening(Listener(settings, incoming, accepted, on_rejection=told.append)) as listener:
        open_one = request_association(listener.port, calling="HERE")
        for called, calling in (("MAMMOD", "STRANGER"), ("MAMMOD", "ELSEWHERE"), ("OTHER", "HERE"), ("MAMMOD", "HERE")):
            assert rejection_of(listener.port, called, calling) is not None
        assert listener.rejected == {
            "unknown_peer": 2, "called_ae_title": 1, "not_permitted": 0, "tls": 0, "busy": 1,
        }  # fmt: skip
        assert [(one.kind, one.address, one.calling_ae, one.called_ae) for one in told] == [
            ("unknown_peer", HOST, "STRANGER", "MAMMOD"),
            ("unknown_peer", HOST, "ELSEWHERE", "MAMMOD"),
            ("called_ae_title", HOST, "HERE", "OTHER"),
            ("busy", HOST, "HERE", "MAMMOD"),
        ]
        open_one.release()


def test_peers_can_be_replaced_while_associations_are_open(incoming: Path, accepted: Accepted) -> None:
    with listening(Listener(listener_settings(peers=[{"ae_title": "OLD"}]), incoming, accepted)) as listener:
        old = request_association(listener.port, calling="OLD")
        listener.replace_peers((Peer(ae_title="NEW"),))
        assert rejection_of(listener.port, calling="OLD") == (1, 1, 3)
        assert rejection_of(listener.port, calling="NEW") is None
        assert store(old, GOOD, UID).Status == 0x0000
        old.release()


@pytest.mark.parametrize(("peers", "warnings"), [([], 1), (PEERS, 0)])
def test_open_listener_is_warned_about_once(
    incoming: Path, accepted: Accepted, peers: list[dict[str, object]], warnings: int
) -> None:
    with (
        capture_logs() as events,
        listening(Listener(listener_settings(peers=peers), incoming, accepted)) as listener,
    ):
        for _ in range(2):
            assert rejection_of(listener.port, calling="HERE") is None
    assert len([event for event in events if "listener.peers is empty" in event["event"]]) == warnings


def test_more_associations_than_allowed_are_rejected_until_one_ends(incoming: Path, accepted: Accepted) -> None:
    with listening(Listener(listener_settings(max_associations=2), incoming, accepted)) as listener:
        first, second = (request_association(listener.port) for _ in range(2))
        assert first.is_established
        assert second.is_established
        assert rejection_of(listener.port) == (2, 3, 2)
        first.release()
        wait_until(lambda: rejection_of(listener.port) is None, "the released place can be taken")
        second.abort()


def test_an_association_that_cannot_be_decided_on_is_rejected(incoming: Path, accepted: Accepted) -> None:
    def admit() -> str | None:
        raise OSError(errno.EIO, "the disk does not answer")

    with listening(Listener(listener_settings(), incoming, accepted, full=admit)) as listener:
        assert request_association(listener.port).is_rejected
        wait_until(lambda: not listener.served_here, "it has ended")


def test_one_that_cannot_be_served_gives_its_place_back(
    incoming: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    ended: list[str] = []
    with listening(Listener(listener_settings(), incoming, accepted, on_end=ended.append)) as listener:
        monkeypatch.setattr("daemon.receiving.store_scp.IncomingAssociation", fail)
        assert not request_association(listener.port).is_established
        wait_until(lambda: len(ended) == 1, "it is over")
        assert listener._admission.open == 0
        monkeypatch.undo()
        assert answers_echo(listener.port, "MAMMOD")


def test_who_left_is_not_admitted() -> None:
    """As where the process that serves an association ends while its question is being answered."""
    admission = Admission(listener_settings(), lambda: None, lambda _: None)
    assert admission.enter("a", "127.0.0.1")
    admission.leave("a")
    asked = AssociationRequest("MODALITY", "MAMMOD", frozenset())
    assert isinstance(admission.decide("a", asked), Rejected)
    left = Admission(listener_settings(), lambda: left.leave("b"), lambda _: None)
    assert left.enter("b", "127.0.0.1")
    assert isinstance(left.decide("b", asked), Rejected)
    assert (left.admitted, left.open) == (0, 0)


def test_no_room_rejects_associations_and_refuses_instances(incoming: Path, accepted: Accepted) -> None:
    reason: list[str] = []
    admit: Callable[[], str | None] = lambda: reason[0] if reason else None  # noqa: E731
    with listening(Listener(listener_settings(), incoming, accepted, full=admit)) as listener:
        association = request_association(listener.port)
        reason.append("the disk is nearly full")
        assert store(association, GOOD, UID).Status == 0xA700
        assert rejection_of(listener.port) == (2, 3, 1)
        reason.clear()
        assert store(association, GOOD, UID).Status == 0x0000
        association.release()
    assert len(accepted) == 1


# --- negotiation
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([IMPLICIT, EXPLICIT], EXPLICIT),
        ([BIG_ENDIAN, EXPLICIT, IMPLICIT], EXPLICIT),
        ([BIG_ENDIAN, IMPLICIT], IMPLICIT),
        ([BIG_ENDIAN], BIG_ENDIAN),
        ([JPEG_LOSSLESS, EXPLICIT, IMPLICIT], JPEG_LOSSLESS),
        ([IMPLICIT, EXPLICIT, JPEG_BASELINE], EXPLICIT),
        (["1.2.3", JPEG_BASELINE], JPEG_BASELINE),
    ],
)
def test_negotiated_transfer_syntax(listener: Listener, offered: list[str], chosen: str) -> None:
    association = request_association(listener.port, [(MAMMOGRAM, offered)])
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[chosen]]
    association.release()


def test_unknown_transfer_syntax_and_unknown_class_are_rejected_alone(listener: Listener) -> None:
    """PS3.8 table 9-18: 3 abstract syntax not supported, 4 transfer syntaxes not supported."""
    association = request_association(
        listener.port, [(MAMMOGRAM, ["1.2.3"]), ("1.2.3.4", [EXPLICIT]), (LABEL_MAP_SEGMENTATION, [EXPLICIT])]
    )
    assert [context.abstract_syntax for context in association.accepted_contexts] == [LABEL_MAP_SEGMENTATION]
    assert {context.result for context in association.rejected_contexts} == {3, 4}
    association.release()
    assert choose_transfer_syntax(["1.2.3"]) is None


def test_every_storage_class_is_accepted_in_every_transfer_syntax(listener: Listener) -> None:
    classes = storage_classes()
    assert {str(context.abstract_syntax) for context in AllStoragePresentationContexts} <= set(classes)
    syntaxes = [str(uid) for uid in AllTransferSyntaxes if not uid.startswith("1.2.840.10008.1.2.7.")]
    offers = [(MAMMOGRAM, [syntax]) for syntax in syntaxes]
    offers += [(sop_class, [syntaxes[number % len(syntaxes)]]) for number, sop_class in enumerate(classes)]
    for start in range(0, len(offers), 128):  # as many contexts as an association may have
        association = request_association(listener.port, offers[start : start + 128])
        assert association.rejected_contexts == []
        association.release()


# --- the wire
# ----------------------------------------------------------------------------------------------------


def talk(port: int, sent: bytes, then_close: bool = False) -> bytes:
    """The answer to these bytes until the listener closes the connection; TimeoutError if it takes 10 s."""
    answer = b""
    with socket.create_connection((HOST, port), timeout=10) as connection:
        try:
            connection.sendall(sent)
            if then_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                answer += part
        except TimeoutError:
            raise
        except OSError:  # closed from the other side
            pass
    return answer


@pytest.mark.parametrize("kind", [1, 4])
def test_absurd_pdu_length_is_aborted_at_once(listener: Listener, kind: int) -> None:
    assert talk(listener.port, struct.pack(">BBI", kind, 0, 0x7FFFFFFF)) == bytes.fromhex("07000000000400000206")


def test_absurd_pdu_length_within_an_association_ends_it(listener: Listener, incoming: Path) -> None:
    association = request_association(listener.port)
    store_in_part(association, encode(mammogram(size=512)), UID)
    association.dul.socket.socket.sendall(struct.pack(">BBI", 4, 0, 0x7FFFFFFF))
    wait_until(lambda: association.is_aborted, "the association is aborted")
    wait_until(lambda: is_empty(incoming), "the half-received file is removed")


@pytest.fixture(scope="module")
def association_request() -> bytes:
    """An A-ASSOCIATE-RQ as pynetdicom sends it."""
    with socket.create_server((HOST, 0)) as server:
        sender = threading.Thread(target=request_association, args=(server.getsockname()[1],))
        sender.start()
        connection, _ = server.accept()
        with connection:
            request = connection.recv(65536)
        sender.join(20)
    return request


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
    st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=30)), max_size=4),
)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_protocol_ends_the_connection_and_nothing_else(
    listener: Listener,
    association_request: bytes,
    with_request: bool,
    damages: list[tuple[int, int]],
    pdus: list[tuple[int, bytes]],
) -> None:
    """A damaged request, then PDUs of any kind and content. A thread that dies would fail the test."""
    request = bytearray(association_request)
    for place, value in damages:
        request[place % len(request)] = value
    sent = bytes(request) if with_request else b""
    sent += b"".join(struct.pack(">BBI", kind, 0, len(body)) + body for kind, body in pdus)
    talk(listener.port, sent, then_close=True)


def test_web_browser_is_turned_away_and_the_next_association_served(listener: Listener) -> None:
    assert talk(listener.port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"\x07")  # A-ABORT
    assert answers_echo(listener.port, "MAMMOD")


def test_clients_that_connect_and_leave_hold_no_place(incoming: Path, accepted: Accepted) -> None:
    """A load balancer's TCP checks: many times more of them than connections may be open."""
    with listening(Listener(listener_settings(max_associations=1), incoming, accepted)) as listener:
        for _ in range(100):
            socket.create_connection((HOST, listener.port), timeout=10).close()
        # sooner than the 30 s that the standard's ARTIM timer waits for a request
        wait_until(lambda: answers_echo(listener.port, "MAMMOD"), "an association is accepted", limit_s=10)


def test_port_in_use_is_a_configuration_error(listener: Listener, incoming: Path, accepted: Accepted) -> None:
    with pytest.raises(ConfigurationError, match=rf"listener.port = {listener.port}.*Address already in use"):
        Listener(listener_settings(port=listener.port), incoming, accepted).start()


# --- stopping
# ----------------------------------------------------------------------------------------------------


def test_stop_answers_what_is_being_received_and_aborts_who_is_idle(
    incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.receiving.store_scp.IDLE_S", 0.1)
    asked, may_return = threading.Event(), threading.Event()

    def accept(_: ReceivedInstance) -> None:
        asked.set()
        assert may_return.wait(20)

    listener = Listener(listener_settings(), incoming, accept)
    listener.start()
    port = listener.port
    idle, busy = request_association(port), request_association(port)
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(store(busy, GOOD, UID).Status))
    sender.start()
    assert asked.wait(20)
    stopper = threading.Thread(target=listener.stop)
    stopper.start()
    wait_until(lambda: idle.is_aborted, "the idle association is aborted")
    stopper.join(1)  # ten times as long as one may be idle
    assert stopper.is_alive()
    assert busy.is_established
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port), timeout=5)
    may_return.set()
    sender.join(20)
    assert statuses == [0x0000]
    stopper.join(20)
    assert not stopper.is_alive()
    assert not [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


def test_stop_aborts_who_does_not_finish_in_time(
    incoming: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.receiving.store_scp.MAX_ABORT_S", 60)  # so that it is the abort that ends it
    listener = Listener(listener_settings(), incoming, accepted)
    listener.start()
    association = request_association(listener.port)
    store_in_part(association, encode(mammogram(size=512)), UID)
    wait_until(lambda: not is_empty(incoming), "the data set is being received")
    began = time.monotonic()
    listener.stop(0.5)
    assert 0.5 <= time.monotonic() - began < 30
    wait_until(lambda: association.is_aborted, "the association that never ends is aborted")
    assert is_empty(incoming)


# --- TLS
# ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by openssl: a CA that signed `server` and `client`, and a `stranger` that signed itself."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run([program("openssl"), *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-x509", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}", "-addext", "basicConstraints=CA:FALSE")
        openssl(*new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def tls_listener(incoming: Path, accepted: Accepted, certificates: Path) -> Iterator[Listener]:
    tls = {
        "certificate": certificates / "server.pem",
        "key": certificates / "server.key",
        "ca": certificates / "ca.pem",
    }
    with listening(Listener(listener_settings(tls=tls), incoming, accepted)) as running:
        yield running


def client_context(certificates: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates / "ca.pem")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def test_tls_sender_is_served_while_silent_clients_hold_connections(
    tls_listener: Listener, accepted: Accepted, certificates: Path
) -> None:
    silent = [socket.create_connection((HOST, tls_listener.port), timeout=10) for _ in range(3)]
    content = encode(mammogram(size=512))
    association = request_association(tls_listener.port, tls=client_context(certificates, "client"))
    assert association.is_established
    assert store(association, content, UID).Status == 0x0000
    association.release()
    assert data_set_bytes(accepted.file(UID)) == content
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("name", [None, "stranger"])
def test_tls_without_a_certificate_of_the_ca_is_refused(
    tls_listener: Listener, certificates: Path, name: str | None
) -> None:
    with capture_logs() as events:
        assert not request_association(tls_listener.port, tls=client_context(certificates, name)).is_established
        wait_until(lambda: events, "the failed handshake is logged")
    assert events[0]["event"] == "connection closed before an association"


def test_tls_older_than_1_2_is_refused(tls_listener: Listener, certificates: Path) -> None:
    context = client_context(certificates, "client")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((HOST, tls_listener.port), timeout=10) as connection,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        context.wrap_socket(connection)


def test_plain_sender_at_the_tls_port_is_refused(tls_listener: Listener) -> None:
    assert not answers_echo(tls_listener.port, "MAMMOD")


@pytest.mark.parametrize("wrong", ["certificate", "key", "ca"])
def test_tls_file_that_cannot_be_used_is_a_configuration_error(
    certificates: Path, incoming: Path, accepted: Accepted, wrong: str
) -> None:
    tls = {
        "certificate": certificates / "server.pem",
        "key": certificates / "server.key",
        "ca": certificates / "ca.pem",
        wrong: certificates / "missing",
    }
    with pytest.raises(ConfigurationError, match=rf"listener\.tls\.{wrong} = .*missing"):
        Listener(listener_settings(tls=tls), incoming, accepted)
