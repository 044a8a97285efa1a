"""Peers that hold connections and say little: a good sender is still served at once, and they cost nothing.

Hostile peers call from 127.0.0.2 and the good one from 127.0.0.1 where limits for each address matter.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.dimse.association import IncomingAssociation
from daemon.dimse.upper_layer import UpperLayer
from daemon.receiving.listener import Listener
from tests.support import wire
from tests.support.peers.programs import wait_until
from tests.support.scu import (
    EXPLICIT,
    MAMMOGRAM,
    Accepted,
    encode,
    listener_settings,
    listening,
    mammogram,
    request_association,
    store,
)
from tests.support.wire import associate, connect, is_closed, receive_pdu

UID = mammogram().SOPInstanceUID
GOOD = encode(mammogram())
HOSTILE = "127.0.0.2"
HANG_LIMIT_S = 20.0  # the bar is one second; a busy machine must not fail the test


@contextlib.contextmanager
def listener_of(tmp_path: Path, accepted: Accepted, **settings: Any) -> Iterator[Listener]:
    with listening(Listener(listener_settings(**settings), tmp_path / "incoming", accepted)) as running:
        yield running


def seconds_to_serve(port: int, tls: Any = None) -> float:
    """From connecting to the answer of a C-STORE."""
    begun = time.monotonic()
    association = request_association(port, tls=tls)
    assert association.is_established
    assert store(association, GOOD, UID).Status == 0x0000
    took = time.monotonic() - begun
    association.release()
    print(f"served in {took:.3f} s")
    return took


def threads() -> int:
    return threading.active_count()


def events_of(events: list[Any], name: str) -> list[Any]:
    return [event for event in events if event["event"] == name]


@pytest.mark.parametrize("settings", [{}, {"max_connections_per_address": 10_000}, {"max_connections": 100}])
def test_good_sender_among_a_thousand_idle_connections(
    tmp_path: Path, accepted: Accepted, settings: dict[str, int]
) -> None:
    with capture_logs() as events, listener_of(tmp_path, accepted, **settings) as listener:
        before = threads()
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(connect(listener.port)) for _ in range(1000)]
            assert seconds_to_serve(listener.port) < HANG_LIMIT_S
            assert threads() <= before + 4  # of the test's own sender and its association, nothing for the idle
            limit = min(settings.get("max_connections", 1000), settings.get("max_connections_per_address", 100))
            wait_until(lambda: sum(map(is_closed, idle)) >= 1000 - limit, "those beyond the limit are closed")
            assert sum(map(is_closed, idle)) <= 1000 - limit + 1
    told = events_of(events, "connection closed before an association")
    assert sum(event["count"] for event in told) >= 1000 - limit
    assert len(told) < 20, "what was closed is logged together"


def test_descriptors_of_connections_leave_the_low_numbers_free(tmp_path: Path, accepted: Accepted) -> None:
    """pynetdicom's own associations, to the archive, use select(), which fails above 1,023."""
    settings = {"max_connections_per_address": 10_000}
    with listener_of(tmp_path, accepted, **settings) as listener, contextlib.ExitStack() as stack:
        with socket.socket() as probe:
            before = probe.fileno()
        for _ in range(500):
            stack.enter_context(connect(listener.port))
        wait_until(lambda: listener.waiting == 500, "all are accepted")
        with socket.socket() as probe:
            assert probe.fileno() < before + 100


def test_sender_that_asks_too_slowly_is_closed_and_holds_no_thread(tmp_path: Path, accepted: Accepted) -> None:
    with capture_logs() as events, listener_of(tmp_path, accepted, request_timeout_s=1) as listener:
        before = threads()
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connect(listener.port, HOSTILE)) for _ in range(50)]
            sent = 0
            while not all(map(is_closed, slow)):
                assert time.monotonic() - begun < HANG_LIMIT_S
                for connection in slow:
                    with contextlib.suppress(OSError):
                        connection.send(wire.association_request()[sent : sent + 1])
                sent += 1
                assert threads() == before
                time.sleep(0.1)  # that is what these do: a byte, and again
        assert seconds_to_serve(listener.port) < HANG_LIMIT_S
    told = events_of(events, "connection closed before an association")
    assert sum(event["count"] for event in told) == 50
    assert {event["reason"] for event in told} == {"no association request within 1 s"}
    assert {event["address"] for event in told} == {HOSTILE}


def events_open() -> int:
    """How many eventfds this process has open: each association has one."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(link.readlink()) == "anon_inode:[eventfd]"
    return found


@pytest.mark.parametrize("thread", [IncomingAssociation, UpperLayer])
def test_association_for_which_there_is_no_thread_leaves_nothing(
    thread: type[threading.Thread], tmp_path: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with listener_of(tmp_path, accepted) as listener:
        before = events_open()
        with monkeypatch.context() as patched:
            patched.setattr(thread, "start", no_thread)
            with connect(listener.port) as connection:
                connection.sendall(wire.association_request())
                assert receive_pdu(connection) == b""
        wait_until(lambda: listener.served_here == [], "the association is forgotten")
        wait_until(lambda: events_open() == before, "its eventfd is closed")
        assert seconds_to_serve(listener.port) < HANG_LIMIT_S


def test_data_set_that_comes_too_slowly_ends_its_association_and_leaves_nothing(
    tmp_path: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole small PDUs, one after the other: none is late by itself, but the message never gets done."""
    monkeypatch.setattr("daemon.dimse.message_assembly.MIN_BYTES_PER_S", 10_000)
    with capture_logs() as events, listener_of(tmp_path, accepted, network_timeout_s=1) as listener:
        connection, answer = associate(listener.port, HOSTILE)
        assert answer[:1] == wire.ACCEPTED
        connection.sendall(wire.p_data((1, 3, wire.store_command(UID))))
        begun = time.monotonic()
        place = 0
        while not is_closed(connection):
            assert time.monotonic() - begun < HANG_LIMIT_S
            with contextlib.suppress(OSError):
                connection.send(wire.p_data((1, 0, GOOD[place : place + 1])))
            place += 1
            time.sleep(0.05)
        connection.close()
        wait_until(lambda: not any((tmp_path / "incoming").iterdir()), "the half-received file is removed")
        assert seconds_to_serve(listener.port) < HANG_LIMIT_S
    (told,) = events_of(events, "association aborted")
    assert "more slowly than 10000 bytes a second" in told["reason"]
    assert told["address"] == HOSTILE


def test_pdu_that_comes_a_byte_at_a_time_ends_its_association(tmp_path: Path, accepted: Accepted) -> None:
    with capture_logs() as events, listener_of(tmp_path, accepted, network_timeout_s=1) as listener:
        connection, answer = associate(listener.port, HOSTILE)
        assert answer[:1] == wire.ACCEPTED
        slowly = wire.p_data((1, 3, wire.store_command(UID)), (1, 0, GOOD))
        begun = time.monotonic()
        place = 0
        while not is_closed(connection):
            assert time.monotonic() - begun < HANG_LIMIT_S
            with contextlib.suppress(OSError):
                connection.send(slowly[place : place + 1])
            place += 1
            time.sleep(0.05)
        connection.close()
    # Said once, by whichever of the two limits of one second is seen first.
    (told,) = events_of(events, "connection closed") + events_of(events, "association aborted")
    assert "a PDU was not complete after 1 s" in told["reason"] or "nothing was received for 1 s" in told["reason"]


def test_half_open_associations_of_one_address_leave_places_for_others(tmp_path: Path, accepted: Accepted) -> None:
    """They are answered and then silent; those above the limit are rejected: transient, local limit."""
    with capture_logs() as events, listener_of(tmp_path, accepted, network_timeout_s=3) as listener:
        with contextlib.ExitStack() as stack:
            silent = [associate(listener.port, HOSTILE) for _ in range(60)]
            for connection, _ in silent:
                stack.enter_context(connection)
            assert [answer[:1] for _, answer in silent].count(wire.ACCEPTED) == 25
            assert {answer[7:10] for _, answer in silent if answer[:1] == wire.REJECTED} == {b"\2\3\2"}
            assert seconds_to_serve(listener.port) < HANG_LIMIT_S
            wait_until(lambda: all(is_closed(connection) for connection, _ in silent), "idle ones are aborted")
        assert len(events_of(events, "association rejected")) == 35
        wait_until(lambda: associate(listener.port, HOSTILE)[1][:1] == wire.ACCEPTED, "places are free again")
    assert len([e for e in events_of(events, "association aborted") if "nothing was received" in e["reason"]]) == 25


def test_peer_that_never_reads_is_given_up(tmp_path: Path, accepted: Accepted) -> None:
    """C-ECHO requests without end, no answer taken: memory and places stay bounded."""
    with listener_of(tmp_path, accepted, network_timeout_s=1) as listener:
        connection, answer = associate(listener.port, HOSTILE)
        assert answer[:1] == wire.ACCEPTED
        (association,) = listener.served_here
        for end in (connection, association._connection):  # or the kernel takes the answers for a minute
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        connection.settimeout(0.2)
        echo = wire.p_data((3, 3, wire.echo_command()))
        sent, begun = 0, time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < HANG_LIMIT_S:
                with contextlib.suppress(TimeoutError):
                    sent += connection.send(echo * 100)
        assert time.monotonic() - begun < HANG_LIMIT_S, "it was never given up"
        assert seconds_to_serve(listener.port) < HANG_LIMIT_S
        connection.close()


def test_requests_sent_without_waiting_for_answers_are_all_answered_and_hold_few_files(
    tmp_path: Path, accepted: Accepted
) -> None:
    most: list[int] = []
    incoming = tmp_path / "incoming"

    def accept(instance: Any) -> None:
        most.append(len(list(incoming.iterdir())))
        accepted(instance)

    with listening(Listener(listener_settings(), incoming, accept)) as listener:
        connection, answer = associate(listener.port)
        assert answer[:1] == wire.ACCEPTED
        request = wire.p_data((1, 3, wire.store_command(UID)), (1, 2, GOOD))
        sender = threading.Thread(target=lambda: connection.sendall(request * 60))
        sender.start()
        answers = [wire.receive_pdu(connection) for _ in range(60)]
        sender.join()
        connection.close()
    assert all(answer.startswith(b"\x04") for answer in answers)
    assert len(accepted) == 60
    assert max(most) <= 12


def test_a_hundred_idle_associations_cost_next_to_nothing(tmp_path: Path, accepted: Accepted) -> None:
    """The bar is 5 % of a core, of the listener's own threads: earlier tests may have left others."""
    settings = {"max_associations": 120, "max_associations_per_address": 120}
    others = set(threading.enumerate())
    with listener_of(tmp_path, accepted, **settings) as listener, contextlib.ExitStack() as stack:
        for _ in range(100):
            connection, answer = associate(listener.port)
            stack.enter_context(connection)
            assert answer[:1] == wire.ACCEPTED
        clocks = [
            time.pthread_getcpuclockid(thread.ident) for thread in set(threading.enumerate()) - others if thread.ident
        ]
        assert len(clocks) >= 100
        used, begun = sum(map(time.clock_gettime, clocks)), time.monotonic()
        time.sleep(3)  # what is measured is that nothing happens
        share = (sum(map(time.clock_gettime, clocks)) - used) / (time.monotonic() - begun)
        print(f"{share:.2%} of a core for 100 idle associations")
        assert share < 0.05


def test_clients_silent_at_the_tls_port_hold_up_nobody(tmp_path: Path, accepted: Accepted, tls_files: Any) -> None:
    """One that says nothing, one that stops within its handshake, and a hundred more."""
    with (
        capture_logs() as events,
        listener_of(tmp_path, accepted, tls=tls_files.server, request_timeout_s=3) as listener,
        contextlib.ExitStack() as stack,
    ):
        before = threads()
        silent = [stack.enter_context(connect(listener.port, HOSTILE)) for _ in range(100)]
        silent[0].sendall(bytes.fromhex("16030100c8010000c40303"))  # the beginning of a ClientHello
        assert seconds_to_serve(listener.port, tls_files.client()) < HANG_LIMIT_S
        assert threads() <= before + 4
        wait_until(lambda: all(map(is_closed, silent)), "they are closed")
        wait_until(lambda: len(events_of(events, "connection closed before an association")) > 0, "it is logged")
    told = events_of(events, "connection closed before an association")
    assert sum(event["count"] for event in told) == 100
    assert {event["reason"] for event in told} == {"no association request within 3 s"}


def test_clock_set_back_does_not_keep_an_idle_association(
    tmp_path: Path, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener_of(tmp_path, accepted, network_timeout_s=1) as listener:
        connection, answer = associate(listener.port)
        assert answer[:1] == wire.ACCEPTED
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        wait_until(lambda: is_closed(connection), "the idle association is aborted")
        connection.close()


def test_request_in_many_pieces_is_put_together(tmp_path: Path, accepted: Accepted) -> None:
    with listener_of(tmp_path, accepted) as listener:
        connection = connect(listener.port)
        for byte in wire.association_request():
            connection.send(bytes([byte]))
        assert wire.receive_pdu(connection)[:1] == wire.ACCEPTED
        request = wire.p_data((1, 3, wire.store_command(UID)), (1, 2, GOOD))
        for place in range(0, len(request), 7):
            connection.send(request[place : place + 7])
        assert wire.receive_pdu(connection)[:1] == b"\x04"
        connection.close()
    assert [one.sop_instance_uid for one in accepted] == [UID]


def test_largest_honest_request_is_taken(tmp_path: Path, accepted: Accepted) -> None:
    """128 presentation contexts with forty transfer syntaxes each."""
    syntaxes = [EXPLICIT, *(f"1.2.840.10008.1.2.4.{number}" for number in range(50, 90))]
    request = wire.association_request(contexts=[(MAMMOGRAM, syntaxes)] * 128)
    assert len(request) > 100_000
    with listener_of(tmp_path, accepted) as listener:
        connection, answer = associate(listener.port, request=request)
        assert answer[:1] == wire.ACCEPTED
        connection.close()
