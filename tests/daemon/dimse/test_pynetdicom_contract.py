"""pynetdicom's private names that mammod relies on, and what for; a release without one fails here."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, _globals, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

from tests.support.repository import ROOT

SOURCES = [
    path
    for folder in ("daemon", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__) and re.search(r"^(from|import) pynetdicom", path.read_text(), re.MULTILINE)
]

# (object, private name): what for
NAMES = {
    ("evt", "_INTERVENTION_EVENTS"): "bind these alone, not the handlers that log every PDU",
    ("association", "_accepted_cx"): "the accepted presentation contexts, by id",
    ("association", "_rejected_cx"): "give a denied context the result that says so",
    ("association", "_bind_defaults"): "overridden: without the handlers that log every PDU",
    ("association", "_dul_ready"): "set by the upper layer's thread when it runs",
    ("association", "_kill"): "ends the association's loop",
    ("association", "_reactor_checkpoint"): "tests: pauses the loop, so that an answer can be read elsewhere",
    ("association", "_run_reactor"): "overridden: a loop that sleeps while idle",
    ("association", "_sent_abort"): "whether the service ended in an abort, whose reason is then logged",
    ("association", "_serve_request"): "overridden: a C-STORE request is always answered",
    ("dul", "_decode_pdu"): "decodes a PDU and names its event",
    ("dul", "_idle_timer"): "the network timeout, replaced by a monotonic timer",
    ("dul", "_is_transport_event"): "overridden: reads nothing while too many requests are unanswered",
    ("dul", "_kill_thread"): "ends the upper layer's loop",
    ("dul", "_process_recv_primitive"): "sends a primitive by the state machine",
    ("dul", "_read_pdu_data"): "overridden: reads within limits of size and time",
    ("dul", "_recv_pdu"): "hands a decoded PDU to the state machine",
    ("socket", "_is_connected"): "whether the socket may be polled",
    ("timer", "_start_time"): "set by the monotonic clock",
    ("timer", "_end_time"): "set by the monotonic clock",
    ("message", "_data_set_file"): "where a data set is written while it is received",
    ("c_store", "_dataset_file"): "the same file, on the request",
    ("c_store", "_affected_sop_class_uid"): "tests: a request with a UID that is none",
    ("c_store", "_affected_sop_instance_uid"): "tests: a request with a UID that is none",
}


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, Any]]:
    """One object of each kind whose private names are used."""
    association = Association(AE(), _globals.MODE_ACCEPTOR)
    with socket.socket() as connection:
        yield {
            "evt": evt,
            "association": association,
            "dul": association.dul,
            "socket": AssociationSocket(association, client_socket=connection),
            "timer": Timer(1),
            "message": DIMSEMessage(),
            "c_store": C_STORE(),
        }


@pytest.mark.parametrize(("where", "name"), NAMES, ids=[".".join(key) for key in NAMES])
def test_pynetdicom_still_has(where: str, name: str, objects: dict[str, Any]) -> None:
    assert hasattr(objects[where], name), f"pynetdicom's {where} has no {name}; used for: {NAMES[where, name]}"


def private_names(source: Path) -> set[str]:
    """The private names that a module reads from objects or, if it subclasses pynetdicom, has of its own."""
    is_subclassing = source.parent == ROOT / "daemon" / "dimse"
    pattern = r"(?:\.|def )(_[A-Za-z]\w*)" if is_subclassing else r"(?<!\bself)\.(_[A-Za-z]\w*)"
    return set(re.findall(pattern, source.read_text()))


def test_no_other_private_name_is_used_or_overridden(objects: dict[str, Any]) -> None:
    """Every private name that one of pynetdicom's objects has, too, is listed above."""
    used = {
        name
        for source in SOURCES
        for name in private_names(source)
        if any(hasattr(one, name) for one in objects.values())
    }
    assert used == {name for _, name in NAMES}


def test_the_state_machine_is_a_table_by_event_and_state() -> None:
    """What the log of an unexpected PDU looks up (PS3.8 9.2.3)."""
    assert TRANSITION_TABLE["Evt10", "Sta2"] == "AA-1" and TRANSITION_TABLE["Evt6", "Sta6"] == "AA-8"
