"""Nonsense on the wire ends only its own connection, with a reason logged; bad instances leave nothing."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from daemon.ledger import Ledger
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.storage.spool import Spool
from tests.support import hostile_pdus, wire
from tests.support.peers.programs import wait_until
from tests.support.scu import (
    MAMMOGRAM,
    Accepted,
    encode,
    listener_settings,
    listening,
    mammogram,
    request_association,
    store,
)
from tests.support.wire import associate, converse

UID, GOOD = mammogram().SOPInstanceUID, encode(mammogram())
HOSTILE = "127.0.0.2"

pytestmark = pytest.mark.filterwarnings("ignore:.* VR UI")


def say(port: int, said: bytes) -> bytes:
    """What is answered to these bytes until the connection ends; TimeoutError where it does not end."""
    return converse(port, said, HOSTILE)


@pytest.fixture
def listener(tmp_path: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(
        "daemon.dimse.pending_connections.LOG_INTERVAL_S", 0.01
    )  # so that what is told belongs to what was just said
    with listening(
        Listener(listener_settings(max_associations=100), incoming, Accepted(tmp_path / "accepted"))
    ) as running:
        yield running


@given(st.integers(0, 2**32))
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_ends_its_connection_and_leaves_nothing(listener: Listener, incoming: Path, seed: int) -> None:
    """A thread that dies, a file that stays or a refusal without a reason in the log would fail the test."""
    with capture_logs() as events:
        answer = say(listener.port, hostile_pdus.talk(random.Random(seed)))
        wait_until(lambda: not listener.served_here, "its association has ended")
        refused = wire.kinds_of(answer)[-1:] in ([wire.REJECTED], [wire.ABORTED])
        wait_until(lambda: not refused or reasons(events), "the reason is logged", 5)
    assert not any(incoming.iterdir())
    of_associations = [event for event in events if "before an association" not in event["event"]]
    assert len(reasons(of_associations)) <= 1 and all(reasons(events))


def reasons(events: list[Any]) -> list[str]:
    """Why associations and connections were refused or ended by us."""
    told = (
        "association rejected",
        "association aborted",
        "connection closed",
        "connection closed before an association",
    )
    return [event["reason"] for event in events if event["event"] in told]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (struct.pack(">BBI", 1, 0, 0x80000000), "it announced a PDU of 2147483648 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "it announced a PDU of"),
        (wire.pdu(4, b"abcd"), "it sent something else than an association request"),
        (wire.pdu(9, b"abcd"), "it sent something else than an association request"),
        (hostile_pdus.REQUEST[:50], "it ended before its association request was complete"),
    ],
)
def test_refusal_before_an_association_is_logged_once_with_its_reason(
    listener: Listener, said: bytes, reason: str
) -> None:
    with capture_logs() as events:
        say(listener.port, said)
        wait_until(lambda: events, "it is logged")
    (event,) = events
    assert event["event"] == "connection closed before an association"
    assert reason in event["reason"]
    assert (event["address"], event["count"], event["log_level"]) == (HOSTILE, 1, "warning")


STORE = wire.p_data((1, 3, wire.store_command(UID)))
ECHO_WITH_DATA = wire.p_data((3, 3, wire.echo_command().replace(struct.pack("<H", 0x0101), b"\0\0")))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (struct.pack(">BBI", 4, 0, 0x80000000), "a PDU of 2147483648 bytes was announced"),
        (wire.pdu(8, b""), "unknown type 08"),
        (wire.pdu(4, b"\0\0"), "a PDU of type 04 that is malformed"),
        (wire.p_data((1, 3, b""))[:8] + struct.pack(">I", 0x7FFFFFFF) + b"\1\3", "a PDU of type 04 that is malformed"),
        (wire.p_data((99, 3, wire.echo_command())), "presentation context 99, which is not open"),
        (wire.p_data((1, 0, GOOD)), "a data set came without its command set"),
        (STORE + STORE, "a second command set"),
        (STORE + wire.p_data((3, 2, GOOD)), "several presentation contexts"),
        (wire.p_data((1, 1, bytes(40_000)), (1, 1, bytes(40_000))), "command set is longer than 65536 bytes"),
        (wire.p_data((3, 3, wire.echo_command()[:30])), "a DIMSE message cannot be read"),
        (ECHO_WITH_DATA + wire.p_data((3, 0, b"x" * 65_000)) * 20, "none belongs"),
        (wire.association_request(), "an unexpected A-ASSOCIATE-RQ"),
        (wire.pdu(2, wire.association_request()[6:]), "an unexpected A-ASSOCIATE-AC"),
        (wire.pdu(3, bytes((0, 1, 1, 1))), "an unexpected A-ASSOCIATE-RJ"),
        (wire.pdu(6, bytes(4)), "an unexpected A-RELEASE-RP"),
    ],
)  # fmt: skip
def test_refusal_within_an_association_aborts_it_and_is_logged_once(
    listener: Listener, incoming: Path, said: bytes, reason: str
) -> None:
    with capture_logs() as events:
        connection, answer = associate(listener.port, HOSTILE)
        assert answer[:1] == wire.ACCEPTED
        with contextlib.suppress(ConnectionError):
            connection.sendall(said)
        answer = wire.receive_pdu(connection)
        assert answer[:1] in (wire.ABORTED, b""), answer
        wait_until(lambda: not listener.served_here, "the association has ended")
        connection.close()
    assert not any(incoming.iterdir())
    (told,) = reasons(events)
    assert reason in told
    assert [event["event"] for event in events][-1] == "association ended"


def test_nonsense_costs_the_good_sender_nothing(listener: Listener) -> None:
    """Four talk nonsense while one stores: each of its instances is accepted."""
    stop = threading.Event()

    def talk(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            say(listener.port, hostile_pdus.talk(chance))

    hostile = [threading.Thread(target=talk, args=(seed,)) for seed in range(4)]
    for thread in hostile:
        thread.start()
    try:
        association = request_association(listener.port)
        for number in range(1, 30):
            content = encode(mammogram(number))
            assert store(association, content, mammogram(number).SOPInstanceUID).Status == 0x0000
        association.release()
    finally:
        stop.set()
        for thread in hostile:
            thread.join(60)
    assert not any(thread.is_alive() for thread in hostile)


def without(keyword: str) -> bytes:
    dataset = mammogram()
    del dataset[keyword]
    return encode(dataset)


BROKEN = {
    "no SOP Instance UID": (without("SOPInstanceUID"), 0xA900),
    "another SOP Instance UID": (encode(mammogram(2)), 0xA900),
    "cut": (GOOD[:-100], 0xC000),
    "random bytes": (os.urandom(5000), 0xC000),
    "larger than max_instance": (encode(mammogram(size=512)), 0xC000),
    "half a data set, twice": (GOOD[:300] + GOOD[:300], 0xC000),
}


@pytest.mark.parametrize(("content", "status"), BROKEN.values(), ids=list(BROKEN))
def test_broken_instance_has_its_status_and_leaves_nothing_in_the_spool(
    tmp_path: Path, content: bytes, status: int
) -> None:
    spool, ledger = Spool(tmp_path / "spool"), Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    intake = Intake(spool, ledger, "bundle", lambda: None)
    settings: dict[str, Any] = {"max_instance": 400_000}
    with (
        capture_logs() as events,
        listening(Listener(listener_settings(**settings), spool.incoming, intake.accept)) as listener,
    ):
        association = request_association(listener.port)
        assert store(association, content, UID, MAMMOGRAM).Status == status
        assert not [path for path in spool.directory.rglob("*") if path.is_file()]
        assert store(association, GOOD, UID).Status == 0x0000
        association.release()
    ledger.close()
    assert len([path for path in spool.directory.rglob("*") if path.is_file()]) == 1
    (refused,) = (event for event in events if event["event"] == "instance refused")
    assert refused["status"] == f"{status:04X}"


REQUEST = wire.association_request()
ITEM = REQUEST.index(
    b"\x20\x00", 6 + 68
)  # the first presentation context's (PS3.8 9.3.2.2): type, reserved, length, id
USER = REQUEST.index(b"\x50\x00", ITEM)  # the user information item's


def changed(at: int, to: bytes) -> bytes:
    return REQUEST[:at] + to + REQUEST[at + len(to) :]


# A-ASSOCIATE-RQ that cannot be right: what is answered (PS3.8 9.3.4 and 9.3.8) and what the log says.
ABSURD_REQUESTS = {
    "item longer than the PDU": (changed(ITEM + 2, b"\xff\xff"), wire.ABORTED, "that is malformed"),
    "item of no length": (changed(ITEM + 2, b"\0\0"), wire.ABORTED, "that is malformed"),
    "sub-item longer than its item": (changed(ITEM + 10, b"\xff\xff"), wire.ABORTED, "that is malformed"),
    "user information longer than the PDU": (changed(USER + 2, b"\xff\xff"), wire.ABORTED, "that is malformed"),
    "shorter than its fixed part": (wire.pdu(1, REQUEST[6:40]), wire.ABORTED, "that is malformed"),
    "of nothing": (wire.pdu(1, b""), wire.ABORTED, "that is malformed"),
    "of another protocol version": (changed(6, b"\0\2"), wire.REJECTED, "protocol version 2"),
    "cut within an item's header": (
        wire.pdu(1, changed(USER + 2, struct.pack(">H", len(REQUEST) - USER - 4 - 2))[6:]),
        wire.ABORTED,
        "that is malformed",
    ),
}


@pytest.mark.parametrize(("request_pdu", "answered", "reason"), ABSURD_REQUESTS.values(), ids=list(ABSURD_REQUESTS))
def test_absurd_association_request_is_refused_with_its_reason(
    listener: Listener, request_pdu: bytes, answered: bytes, reason: str
) -> None:
    with capture_logs() as events:
        assert wire.kinds_of(say(listener.port, request_pdu)) == [answered]
        wait_until(lambda: reasons(events), "it is logged")
        wait_until(lambda: not listener.served_here, "the association has ended")
    (told,) = reasons(events)
    assert reason in told
