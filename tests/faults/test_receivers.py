"""Receivers: associations served by another process, and what happens when that process dies or hangs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom.sop_class import Verification
from structlog.testing import capture_logs

from config.settings import Settings
from daemon.dicom.digest import has_digest
from daemon.errors import RefusedInstance
from daemon.events import bus, timings
from daemon.events.timings import Stage
from daemon.receiving import receiver_messages, receiver_process
from daemon.receiving.listener import Listener
from daemon.receiving.receiver_process import ReceiverProcess
from daemon.receiving.spooling import SpooledInstance
from daemon.storage.received_instance import ReceivedInstance
from daemon.system import supervisor
from daemon.system.backoff import Backoff
from daemon.system.child_process import ChildProcess
from tests.support.commitment_archives import CommittingArchive
from tests.support.peers.programs import wait_until
from tests.support.scu import (
    EXPLICIT,
    MAMMOGRAM,
    data_set_bytes,
    encode,
    listener_settings,
    listening,
    mammogram,
    request_association,
    store,
    store_in_part,
)

START_LIMIT_S = 120.0
GOOD = mammogram()
CONTENT = encode(GOOD)
UID = str(GOOD.SOPInstanceUID)


class Rig:
    """A listener with one receiver and a spool; `recorded` came from it, `here` from this process."""

    def __init__(self, folder: Path, **chosen: object) -> None:
        self.settings = Settings.model_validate(
            {
                "listener": listener_settings(**chosen).model_dump(),
                "spool": {"directory": folder / "spool", "min_free": 0},
            }
        )
        self.spool = folder / "spool"
        self.incoming = self.spool / "incoming" / "this"
        self.recorded: list[SpooledInstance] = []
        self.here: list[ReceivedInstance] = []
        self.ended: list[str] = []
        self.committed: list[tuple[str, Dataset]] = []
        self.record: Callable[[SpooledInstance], None] = self.recorded.append
        self.lots: list[int] = []
        self.receiver = ReceiverProcess("receiver-1", self.settings, self.incoming / "receiver-1", self.record_each)
        self.listener = Listener(
            self.settings.listener,
            self.incoming,
            self.here.append,
            commitment=self.take_commitment,
            on_end=self.ended.append,
            receivers=[self.receiver],
        )

    def record_each(self, several: Sequence[SpooledInstance]) -> list[Exception | None]:
        self.lots.append(len(several))
        errors: list[Exception | None] = []
        for placed in several:
            try:
                self.record(placed)
            except Exception as error:
                errors.append(error)
            else:
                errors.append(None)
        return errors

    def take_commitment(self, calling_ae: str, information: Dataset) -> int:
        self.committed.append((calling_ae, information))
        return 0x0000

    def associate_with_receiver(self, **how: Any) -> Any:
        """An association that the receiver serves, since this process serves one already."""
        before = self.receiver.open
        association = request_association(self.listener.port, **how)
        assert self.receiver.open == before + 1
        return association

    @property
    def half_received(self) -> list[Path]:
        return list(self.incoming.rglob("*.part"))


@contextmanager
def running(folder: Path, **chosen: object) -> Iterator[Rig]:
    """With one association open that this process serves, so that the next goes to the receiver."""
    rig = Rig(folder, **chosen)
    with listening(rig.listener):
        wait_until(lambda: rig.receiver.is_ready, "the receiver is ready", START_LIMIT_S)
        first = request_association(rig.listener.port)
        assert first.is_established and rig.receiver.open == 0
        yield rig
        first.abort()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path) as rig:
        yield rig


def test_an_instance_is_placed_by_the_receiver_and_recorded_here(rig: Rig) -> None:
    told: list[bus.Event] = []
    took: list[timings.StageTiming] = []
    with bus.subscribed(told.append), timings.subscribed(took.append):
        association = rig.associate_with_receiver()
        assert store(association, CONTENT, UID).Status == 0x0000
        association.release()
        wait_until(lambda: rig.receiver.open == 0, "the association has ended")
        wait_until(lambda: any(one.seconds is not None for one in took), "its time is told here")
        wait_until(lambda: len(told) >= 2, "its answer is told here")
    (placed,) = rig.recorded
    assert placed.file is not None
    file = rig.spool / placed.file.path
    assert data_set_bytes(file) == CONTENT and has_digest(file, placed.file.digest)
    assert placed.received.sop_instance_uid == UID and placed.study_uid == GOOD.StudyInstanceUID
    assert placed.received.calling_ae == "MODALITY" and placed.received.association_id in rig.ended
    assert rig.here == [] and rig.half_received == []
    assert [type(one) for one in told] == [bus.AssociationAccepted, bus.InstanceAnswered]
    assert {one.stage for one in took} == {Stage.RECEIVE}


def test_associations_are_shared_out(rig: Rig) -> None:
    others = [request_association(rig.listener.port) for _ in range(5)]
    assert (len(rig.listener.served_here), rig.receiver.open, rig.listener.open_associations) == (3, 3, 6)
    for other in others:
        other.release()
    wait_until(lambda: rig.listener.open_associations == 1, "they have ended")


@pytest.mark.parametrize(
    "error, status",
    [
        (RefusedInstance(0xA700, "the ledger is full"), 0xA700),
        (RefusedInstance(0xC000, "odd"), 0xC000),
        (OSError(errno.ENOSPC, "No space left on device"), 0xA700),
        (ValueError("a value of the data set"), 0x0110),
    ],
)
def test_what_the_ledger_says_is_the_answer(rig: Rig, error: Exception, status: int) -> None:
    def refuse(placed: SpooledInstance) -> None:
        raise error

    rig.record = refuse
    association = rig.associate_with_receiver()
    with capture_logs() as logged:
        assert store(association, CONTENT, UID).Status == status
    rig.record = rig.recorded.append
    assert store(association, CONTENT, UID).Status == 0x0000, "the association goes on"
    association.release()
    assert "a value of the data set" not in repr([{**entry, "exc_info": ""} for entry in logged])


def test_what_comes_while_the_ledger_is_written_to_is_recorded_together(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each is answered for itself."""
    associations: list[Any] = []
    while len(associations) < 4:  # they are served here and there by turns
        before = rig.receiver.open
        association = request_association(rig.listener.port)
        if rig.receiver.open > before:
            associations.append(association)
    hear, asked = rig.receiver._handle, []

    def listen(message: Any, *rest: Any) -> None:
        hear(message, *rest)
        if isinstance(message, receiver_messages.Request):
            asked.append(message)

    monkeypatch.setattr(rig.receiver, "_handle", listen)
    images = [mammogram(1 + number) for number in range(4)]
    began, go_on = threading.Event(), threading.Event()

    def record(placed: SpooledInstance) -> None:
        began.set()
        assert go_on.wait(60)
        if placed.received.sop_instance_uid == images[3].SOPInstanceUID:
            raise RefusedInstance(0xA700, "the ledger is full")

    rig.record = record
    statuses: dict[int, int] = {}

    def send(number: int) -> None:
        image = images[number]
        statuses[number] = store(associations[number], encode(image), str(image.SOPInstanceUID)).Status

    senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    senders[0].start()
    assert began.wait(60)
    for sender in senders[1:]:
        sender.start()
    wait_until(lambda: len(asked) == 4, "the others are to be recorded")
    go_on.set()
    for sender in senders:
        sender.join(60)
    assert rig.lots == [1, 3]
    assert statuses == {0: 0x0000, 1: 0x0000, 2: 0x0000, 3: 0xA700}
    for association in associations:
        association.release()


def test_a_broken_data_set_is_refused_by_the_receiver(rig: Rig) -> None:
    association = rig.associate_with_receiver()
    assert store(association, CONTENT[:-100], UID).Status == 0xC000
    assert store(association, CONTENT, str(generate_uid())).Status == 0xA900
    association.release()
    assert rig.recorded == []


def test_limits_and_peers_hold_for_all_processes_together(tmp_path: Path) -> None:
    peers = [{"ae_title": "MODALITY"}, {"ae_title": "MONITOR", "permissions": ["echo"]}]
    with running(tmp_path, peers=peers, max_associations=3) as rig:
        monitor = rig.associate_with_receiver(
            calling="MONITOR", contexts=((MAMMOGRAM, (EXPLICIT,)), (Verification, (EXPLICIT,)))
        )
        assert [context.result for context in monitor.rejected_contexts] == [1]
        assert monitor.send_c_echo().Status == 0x0000
        here = request_association(rig.listener.port)
        assert here.is_established
        fourth = request_association(rig.listener.port)
        assert (fourth.is_rejected, fourth.acceptor.primitive.result_str) == (True, "Rejected Transient")
        stranger = request_association(rig.listener.port, calling="STRANGER")
        assert stranger.is_rejected
        counts = rig.listener.rejected
        assert (counts["busy"], counts["unknown_peer"], counts["not_permitted"]) == (1, 1, 1)
        rig.listener.replace_peers(
            Settings.model_validate({"listener": {"peers": [{"ae_title": "NEW"}]}}).listener.peers
        )
        here.abort()
        wait_until(lambda: rig.listener.open_associations == 2, "it has ended")
        assert request_association(rig.listener.port).is_rejected
        for process_serves in (1, 2):  # whichever process it goes to
            new = request_association(rig.listener.port, calling="NEW")
            assert new.is_established, process_serves
            new.abort()
            wait_until(lambda: rig.listener.open_associations == 2, "it has ended")
        monitor.release()


def test_a_storage_commitment_result_comes_through(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.listener._scp, "serve", None)  # the receiver serves it, and nobody else
    request = Dataset()
    request.TransactionUID = generate_uid()
    request.ReferencedSOPSequence = []
    archive = CommittingArchive()
    archive.call_back(rig.listener.port, request)
    assert archive.response_statuses == [0x0000]
    ((_, information),) = rig.committed
    assert information.TransactionUID == request.TransactionUID


def test_killed_in_the_middle_of_a_data_set_it_is_begun_again_and_nothing_is_left(rig: Rig) -> None:
    association = rig.associate_with_receiver()
    store_in_part(association, encode(mammogram(size=512)), UID)
    wait_until(lambda: rig.half_received, "a data set is being received")
    told: list[bus.Event] = []
    with capture_logs() as logged, bus.subscribed(told.append):
        killed = rig.receiver.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: rig.listener.open_associations == 1, "its association is over")
        wait_until(lambda: rig.receiver.pid not in (None, killed), "another process")
        assert rig.half_received == []
        with_no_receiver = request_association(rig.listener.port)
        assert store(with_no_receiver, CONTENT, UID).Status == 0x0000, "this process serves meanwhile"
        with_no_receiver.release()
        wait_until(lambda: rig.receiver.is_ready, "it is ready", START_LIMIT_S)
    wait_until(lambda: not association.is_established, "the peer was told")
    wait_until(lambda: rig.listener.open_associations == 1, "they have ended")
    assert bus.WorkerRestarted(bus.WorkerKind.RECEIVER) in told
    assert [entry["exit"] for entry in logged if entry["event"] == "process exited, restarting"] == [-signal.SIGKILL]
    assert len(rig.ended) == 2 and len(set(rig.ended)) == 2
    again = rig.associate_with_receiver()
    assert store(again, CONTENT, UID).Status == 0x0000
    again.release()


def test_one_that_hangs_is_ended_and_its_peers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_process, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(receiver_process, "HANG_LIMIT_S", 1.0)
    with running(tmp_path) as rig:
        association = rig.associate_with_receiver()
        frozen = rig.receiver.pid
        assert frozen is not None
        with capture_logs() as logged:
            os.kill(frozen, signal.SIGSTOP)
            wait_until(lambda: rig.receiver.pid not in (None, frozen), "another process")
            wait_until(lambda: not association.is_established, "the peer was told")
            wait_until(lambda: rig.listener.open_associations == 1, "its association is over")
        assert "process hangs, killing it" in {entry["event"] for entry in logged}


def test_one_that_takes_nothing_more_does_not_hold_up_the_listener(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = rig.receiver.pid
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)

    def fail(pipe: Any, handle: int, pid: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(supervisor, "send_handle", fail)
    lost = request_association(rig.listener.port)
    assert not lost.is_established
    monkeypatch.undo()
    wait_until(lambda: rig.receiver.pid not in (None, frozen), "another process")
    assert rig.receiver.open == 0
    served = request_association(rig.listener.port)
    assert store(served, CONTENT, UID).Status == 0x0000
    served.release()


def test_its_folder_may_be_taken_for_a_dead_nodes_and_removed(rig: Rig) -> None:
    association = rig.associate_with_receiver()
    shutil.rmtree(rig.incoming)
    assert store(association, CONTENT, UID).Status == 0x0000
    association.release()
    assert len(rig.recorded) == 1


def test_one_that_cannot_be_heard_is_begun_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = rig.receiver.pid

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with capture_logs() as logged:
        monkeypatch.setattr(rig.receiver, "_handle", fail)
        request_association(rig.listener.port)
        wait_until(lambda: rig.receiver.pid != lost, "it is ended")
        monkeypatch.undo()
        wait_until(lambda: rig.receiver.is_ready, "another is ready", START_LIMIT_S)
    assert "process cannot be served" in {entry["event"] for entry in logged}
    wait_until(lambda: rig.listener.open_associations == 1, "its association is over")
    again = rig.associate_with_receiver()
    assert store(again, CONTENT, UID).Status == 0x0000
    again.release()


def test_one_that_cannot_be_answered_is_begun_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its senders would wait for ever."""
    lost = rig.receiver.pid
    association = rig.associate_with_receiver()

    def fail(*_: Any) -> None:
        raise TypeError("cannot pickle")

    with capture_logs() as logged:
        monkeypatch.setattr(rig.receiver, "_send_replies", fail)
        assert "Status" not in store(association, CONTENT, UID), "the association is over"
        wait_until(lambda: rig.receiver.pid != lost, "it is ended")
        monkeypatch.undo()
        wait_until(lambda: rig.receiver.is_ready, "another is ready", START_LIMIT_S)
    assert "receiver cannot be answered, killing it" in {entry["event"] for entry in logged}
    again = rig.associate_with_receiver()
    assert store(again, CONTENT, UID).Status == 0x0000
    again.release()


def test_one_that_cannot_be_begun_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def one(name: str, *arguments: Any) -> ChildProcess:
        tries.append(name)
        if len(tries) == 1:
            raise OSError(errno.ENOMEM, "no memory")
        return ChildProcess(name, *arguments)

    monkeypatch.setattr(supervisor, "ChildProcess", one)
    monkeypatch.setattr(receiver_process, "RESTART_BACKOFF", Backoff(0.01, 60.0))
    with capture_logs() as logged, running(tmp_path) as rig:
        association = rig.associate_with_receiver()
        assert store(association, CONTENT, UID).Status == 0x0000
        association.release()
    assert len(tries) == 2
    assert [entry["exit"] for entry in logged if entry["event"] == "process exited, restarting"] == ["OSError"]


def test_a_stop_lets_the_data_set_come_to_its_end(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        idle, busy = rig.associate_with_receiver(), request_association(rig.listener.port)
        while rig.receiver.open < 2:
            busy = request_association(rig.listener.port)
        recording, go_on = threading.Event(), threading.Event()

        def record(placed: SpooledInstance) -> None:
            recording.set()
            assert go_on.wait(60)
            rig.recorded.append(placed)

        rig.record = record
        statuses: list[int] = []
        sender = threading.Thread(target=lambda: statuses.append(store(busy, CONTENT, UID).Status))
        sender.start()
        assert recording.wait(60)
        stopping = threading.Thread(target=rig.listener.stop, args=(30,))
        stopping.start()
        wait_until(lambda: not idle.is_established, "the idle one is aborted")
        assert stopping.is_alive()
        go_on.set()
        sender.join(60)
        stopping.join(60)
        assert statuses == [0x0000] and len(rig.recorded) == 1
        assert rig.receiver.pid is None and rig.listener.open_associations == 0
        assert not (rig.incoming / "receiver-1").exists()


def test_a_stop_before_it_is_ready_ends_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with listening(rig.listener):
        pass
    assert rig.receiver.pid is None


def test_its_log_follows_the_settings(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.listener.reconfigure_log(Settings.model_validate({"log": {"level": "warning", "format": "json"}}).log)
        association = rig.associate_with_receiver()
        assert store(association, CONTENT[:-100], UID).Status == 0xC000
        association.release()
        wait_until(lambda: rig.receiver.open == 0, "the association has ended")
        said = capfd.readouterr().err
    assert '"event": "instance refused"' in said
    assert "association accepted" not in said


def test_what_it_stores_is_private(rig: Rig) -> None:
    association = rig.associate_with_receiver()
    store_in_part(association, encode(mammogram(size=512)), UID)
    wait_until(lambda: rig.half_received, "a data set is being received")
    (part,) = rig.half_received
    assert part.stat().st_mode & 0o777 == 0o600
    assert part.parent.stat().st_mode & 0o777 == 0o700
    association.abort()
    wait_until(lambda: not rig.half_received, "it is removed")
    other = rig.associate_with_receiver()
    assert store(other, CONTENT, UID).Status == 0x0000
    other.release()
    (placed,) = rig.recorded
    assert placed.file is not None
    assert (rig.spool / placed.file.path).stat().st_mode & 0o777 == 0o600
    assert dcmread(rig.spool / placed.file.path).SOPInstanceUID == UID
