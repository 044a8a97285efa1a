"""C-STORE to the archive: each answer, refusal and silence gets the outcome that the standard gives it."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AllStoragePresentationContexts, evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import CTImageStorage, Verification

from config.errors import ConfigurationError
from config.settings import TLS
from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.store_status import OutgoingInstance, judge_store_status
from daemon.errors import ArchiveError
from daemon.events.outcomes import StoreOutcomeKind
from tests.support.archive_stubs import SR, archive, outgoing, stub
from tests.support.peers.programs import free_port

STORED, RETRY, FAILED = StoreOutcomeKind.STORED, StoreOutcomeKind.RETRY, StoreOutcomeKind.FAILED


@pytest.mark.parametrize(
    ("status", "kind"),
    [  # PS3.4 table B.2-1 and PS3.7 annex C
        (0x0000, STORED),
        (0xB000, STORED),
        (0xB006, STORED),
        (0xB007, STORED),
        (0x0107, STORED),
        (0x0111, STORED),
        (0xA700, RETRY),
        (0xA7FF, RETRY),
        (0x0213, RETRY),
        (0xA900, FAILED),
        (0xC000, FAILED),
        (0xCFFF, FAILED),
        (0x0110, FAILED),
        (0x0122, FAILED),
        (0x0124, FAILED),
        (0xFF00, FAILED),
        (0x4242, FAILED),
    ],
)
def test_each_status_is_judged(status: int, kind: StoreOutcomeKind) -> None:
    assert judge_store_status(status)[0] is kind


@given(st.integers(0, 0xFFFF))
def test_every_status_has_a_reason_that_names_it(status: int) -> None:
    assert judge_store_status(status)[1].startswith(f"0x{status:04X} ")


def test_many_on_one_association_unchanged_and_judged_each(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(4)]
    answers = dict(zip((item.sop_instance_uid for item in items), (0x0000, 0xC000, 0xA700, 0xB007), strict=True))
    received: dict[str, bytes] = {}
    associations: list[int] = []

    def on_store(event: evt.Event) -> int:
        received[event.request.AffectedSOPInstanceUID] = event.encoded_dataset(include_meta=False)
        return answers[event.request.AffectedSOPInstanceUID]

    with stub(on_store, handlers=((evt.EVT_ACCEPTED, lambda event: associations.append(1)),)) as port:
        outcomes = list(archive(port, tmp_path).store(items))
    assert [(outcome.kind, outcome.status) for outcome in outcomes] == [
        (STORED, 0x0000),
        (FAILED, 0xC000),
        (RETRY, 0xA700),
        (STORED, 0xB007),
    ]
    assert [outcome.sop_instance_uid for outcome in outcomes] == [item.sop_instance_uid for item in items]
    assert len(associations) == 1
    for item in items:
        assert item.path.read_bytes().endswith(received[item.sop_instance_uid])


def test_a_file_leaves_byte_by_byte(tmp_path: Path) -> None:
    item = outgoing(tmp_path)
    _, start = split_dataset(item.path)
    content = item.path.read_bytes()
    # A group length (0008,0000), retired: writing the data set anew would drop it.
    dataset = b"\x08\x00\x00\x00UL\x04\x00\x0c\x00\x00\x00" + content[start:]
    item.path.write_bytes(content[:start] + dataset)
    received = []
    with stub(lambda event: received.append(event.encoded_dataset(include_meta=False)) or 0x0000) as port:
        assert next(archive(port, tmp_path).store([item])).kind is STORED
    assert received == [dataset]


def test_outcomes_come_one_by_one_and_a_consumer_that_stops_ends_the_association(tmp_path: Path) -> None:
    seen: list[str] = []
    ended = threading.Event()

    def on_store(event: evt.Event) -> int:
        seen.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    with stub(on_store, handlers=((evt.EVT_CONN_CLOSE, lambda event: ended.set()),)) as port:
        outcomes = archive(port, tmp_path).store([outgoing(tmp_path), outgoing(tmp_path)])
        first = next(outcomes)
        assert seen == [first.sop_instance_uid]
        outcomes.close()
        assert ended.wait(10)
    assert len(seen) == 1


def test_the_socket_sends_at_once_and_has_a_time_limit(tmp_path: Path) -> None:
    with stub() as port:
        client = archive(port, tmp_path, timeout_s=7)
        with client.associate([build_context(Verification)]) as association:
            connection = association.dul.socket.socket
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.gettimeout() == 7


@pytest.mark.parametrize(
    ("stored", "accepted"),
    [
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
        (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian),
    ],
)
def test_uncompressed_is_turned_into_what_the_archive_takes(stored: str, accepted: str, tmp_path: Path) -> None:
    item = outgoing(tmp_path, syntax=stored)
    received = []

    def on_store(event: evt.Event) -> int:
        received.append((event.context.transfer_syntax, event.dataset))
        return 0x0000

    with stub(on_store, [(SR, [accepted])]) as port:
        outcome = next(archive(port, tmp_path).store([item]))
    assert outcome.kind is STORED
    [(syntax, dataset)] = received
    assert syntax == accepted
    assert dataset == dcmread(item.path)


@pytest.mark.parametrize("stored", [JPEG2000Lossless, ExplicitVRBigEndian])
def test_what_cannot_be_turned_is_refused_for_good_and_the_others_pass(stored: str, tmp_path: Path) -> None:
    bad, good = outgoing(tmp_path, syntax=ExplicitVRLittleEndian), outgoing(tmp_path)
    bad = OutgoingInstance(bad.path, bad.sop_class_uid, bad.sop_instance_uid, stored)
    with stub() as port:
        outcomes = list(archive(port, tmp_path).store([bad, good]))
    assert [outcome.kind for outcome in outcomes] == [FAILED, STORED]
    assert stored in outcomes[0].reason


def test_no_context_accepted_is_permanent(tmp_path: Path) -> None:
    with stub(contexts=[(CTImageStorage, [ExplicitVRLittleEndian])]) as port:
        outcomes = list(archive(port, tmp_path).store([outgoing(tmp_path), outgoing(tmp_path)]))
    assert [outcome.kind for outcome in outcomes] == [FAILED, FAILED]
    assert "no presentation context" in outcomes[0].reason


def test_association_refused_is_retried(tmp_path: Path) -> None:
    with stub() as port:
        client = archive(port, tmp_path, ae_title="OTHER")
        outcomes = list(client.store([outgoing(tmp_path), outgoing(tmp_path)]))
        with pytest.raises(ArchiveError, match="refused the association"):
            client.echo()
    assert [(outcome.kind, outcome.status) for outcome in outcomes] == [(RETRY, None)] * 2
    assert "archive.ae_title" in outcomes[0].reason


def test_nobody_there_is_retried(tmp_path: Path) -> None:
    client = archive(free_port(), tmp_path)
    assert [outcome.kind for outcome in client.store([outgoing(tmp_path)])] == [RETRY]
    with pytest.raises(ArchiveError, match="cannot be reached"):
        client.echo()


def test_no_host_and_unknown_host_are_archive_errors(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"archive\.host"):
        Archive(ArchiveSettings(), "MAMMOD", tmp_path).echo()
    with pytest.raises(ArchiveError, match=r"archive\.host"):
        Archive(ArchiveSettings(host="no-such-host.invalid"), "MAMMOD", tmp_path).echo()


def test_a_peer_that_never_speaks_costs_a_time_limit(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = monotonic()
        outcomes = list(archive(silent.getsockname()[1], tmp_path, timeout_s=0.3).store([outgoing(tmp_path)]))
    assert [outcome.kind for outcome in outcomes] == [RETRY]
    assert monotonic() - began < 5


def test_accepted_and_never_answered_is_retried_within_the_limit(tmp_path: Path) -> None:
    release = threading.Event()

    def on_store(event: evt.Event) -> int:
        release.wait(20)
        return 0x0000

    with stub(on_store) as port:
        began = monotonic()
        outcomes = list(archive(port, tmp_path, timeout_s=0.4).store([outgoing(tmp_path) for _ in range(3)]))
        took = monotonic() - began
        release.set()
    assert [(outcome.kind, outcome.status) for outcome in outcomes] == [(RETRY, None)] * 3
    assert "no answer in 0.4 s" in outcomes[0].reason
    assert "not tried" in outcomes[2].reason
    assert took < 5


@pytest.mark.parametrize("position", [0, 1, 3])
def test_an_instance_that_breaks_associations_does_not_wedge_the_others(position: int, tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(4)]
    poison = items[position].sop_instance_uid
    tries: Counter[str] = Counter()

    def on_store(event: evt.Event) -> int:
        tries[event.request.AffectedSOPInstanceUID] += 1
        if event.request.AffectedSOPInstanceUID == poison:
            event.assoc.abort()
        return 0x0000

    with stub(on_store) as port:
        outcomes = list(archive(port, tmp_path).store(items))
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds == [RETRY if number == position else STORED for number in range(4)]
    assert "broke" in outcomes[position].reason
    assert set(tries.values()) == {1}


def test_an_archive_that_breaks_every_association_is_left_alone(tmp_path: Path) -> None:
    calls: list[int] = []

    def on_store(event: evt.Event) -> int:
        calls.append(1)
        event.assoc.abort()
        return 0x0000

    with stub(on_store) as port:
        outcomes = list(archive(port, tmp_path).store([outgoing(tmp_path) for _ in range(5)]))
    assert [outcome.kind for outcome in outcomes] == [RETRY] * 5
    assert len(calls) == 2


def test_a_file_that_is_gone_or_is_not_dicom_fails_alone(tmp_path: Path) -> None:
    items = [outgoing(tmp_path) for _ in range(4)]
    items[0].path.unlink()
    items[2].path.write_bytes(b"nothing of DICOM")
    with stub() as port:
        outcomes = list(archive(port, tmp_path).store(items))
    assert [outcome.kind for outcome in outcomes] == [FAILED, STORED, FAILED, STORED]


def test_more_classes_than_one_association_can_name(tmp_path: Path) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:70]]
    items = [outgoing(tmp_path, sop_class=sop_class) for sop_class in classes]
    associations: list[int] = []
    contexts = [(sop_class, [ExplicitVRLittleEndian]) for sop_class in classes]
    with stub(contexts=contexts, handlers=((evt.EVT_ACCEPTED, lambda event: associations.append(1)),)) as port:
        outcomes = list(archive(port, tmp_path).store(items))
    assert {outcome.kind for outcome in outcomes} == {STORED}
    assert len(outcomes) == 70
    assert len(associations) == 2


def test_echo(tmp_path: Path) -> None:
    with stub() as port:
        archive(port, tmp_path).echo()
    with (
        stub(handlers=((evt.EVT_C_ECHO, lambda event: 0x0122),)) as port,
        pytest.raises(ArchiveError, match="0x0122"),
    ):
        archive(port, tmp_path).echo()


def test_tls_files_that_cannot_be_used_are_a_configuration_error(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(ConfigurationError, match=r"archive\.tls"):
        archive(1, tmp_path, tls=TLS(certificate=nothing, key=nothing, ca=nothing))


@pytest.mark.parametrize("stow_url", [None, "https://127.0.0.1/dicom-web"])
def test_tls_files_that_break_while_we_run_delay_reports(stow_url: str | None, tmp_path: Path) -> None:
    client = archive(1, tmp_path)
    nothing = tmp_path / "nothing.pem"
    tls = TLS(certificate=nothing, key=nothing, ca=nothing)
    client.settings = client.settings.model_copy(update={"tls": tls, "stow_url": stow_url})
    outcomes = list(client.store([outgoing(tmp_path)]))
    assert [outcome.kind for outcome in outcomes] == [RETRY]
    assert "archive.tls" in outcomes[0].reason
    with pytest.raises(ArchiveError, match=r"archive\.tls"):
        client.echo()
