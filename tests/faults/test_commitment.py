"""Storage commitment (PS3.4 annex J): a report is stored only when the archive promises to keep it.

The archive is a stub of pynetdicom that answers on the same association, on a new one, with failures or not
at all; at the end it is Orthanc, whose storage commitment is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from config.errors import ConfigurationError
from config.loading import require_archive
from config.settings import Settings
from daemon.archive.client import Archive
from daemon.archive.outbox_sender import SendSummary, send_due
from daemon.archive.sender_threads import SenderThreads
from daemon.archive.storage_commitment import StorageCommitment
from daemon.archive.store_status import OutgoingInstance
from daemon.audit.trail import AuditTrail
from daemon.ledger import Ledger, jobs, outbox, schema
from daemon.receiving.listener import Listener
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.daemon.archive.test_outbox_sender import queue
from tests.support.archive_stubs import archive, outgoing, stub
from tests.support.cases import Case
from tests.support.commitment_archives import NO_SUCH_INSTANCE, CommittingArchive, committing_archive
from tests.support.ledgers import hold, join
from tests.support.peers.archives import running_orthanc
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.scu import listener_settings, listening
from tests.support.services import Service

BOX = schema.outbox


class SendingRig:
    """A ledger with one report in its outbox, and what sends it and asks about it."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.item: OutgoingInstance = outgoing(folder)
        queue(ledger, self.item, time.time())

    def to(self, port: int, **settings: Any) -> None:
        settings = {"commitment": True, "commitment_attempts": 3, "retry_first_s": 10, "timeout_s": 5} | settings
        self.archive: Archive = archive(port, self.folder, **settings)
        self.commitment = StorageCommitment(self.ledger, self.archive)

    def send(self) -> SendSummary:
        self._due()
        return send_due(self.ledger, hold(), self.archive, self.archive.settings, self.folder.joinpath)

    def ask(self) -> int:
        self._due()
        return self.commitment.ask_due(hold())

    def _due(self) -> None:
        with self.ledger.write() as connection:
            connection.execute(update(BOX).values(next_attempt_at=0.0))

    @property
    def row(self) -> Any:
        with self.ledger.read() as connection:
            return connection.execute(
                select(BOX, schema.jobs.c.state.label("job"), schema.jobs.c.reason.label("job_reason")).join(
                    schema.jobs, schema.jobs.c.id == BOX.c.job_id
                )
            ).one()

    @property
    def states(self) -> tuple[str, str]:
        return self.row.state, self.row.job


@pytest.fixture
def sending(tmp_path: Path) -> Iterator[SendingRig]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    join(ledger)
    yield SendingRig(tmp_path, ledger)
    ledger.close()


def silent(_archive: CommittingArchive, _association: Any, _request: Any) -> None:
    pass


def on_the_same_association(peer: CommittingArchive, association: Any, request: Any) -> None:
    peer.report(association, request)


def test_stored_is_not_done_until_the_answer_comes_on_the_same_association(sending: SendingRig) -> None:
    with committing_archive(on_the_same_association) as peer:
        sending.to(peer.port)
        assert sending.send() == SendSummary(stored=1)
        assert sending.states == ("committing", "sending")
        assert sending.ask() == 1
        wait_until(lambda: peer.response_statuses, "our answer to the result")
    assert peer.response_statuses == [0x0000]
    assert sending.states == ("stored", "done")
    (request,) = peer.requests
    (named,) = request.ReferencedSOPSequence
    assert (named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID) == (
        sending.item.sop_class_uid,
        sending.item.sop_instance_uid,
    )


def test_a_question_that_waits_for_its_answer_keeps_no_report_waiting(
    sending: SendingRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive accepts the request and says no more; its association stays open for the answer."""
    monkeypatch.setattr("daemon.archive.storage_commitment.LINGER_S", 60)
    with committing_archive(silent) as peer:
        sending.to(peer.port, timeout_s=60)
        settings = Settings(archive=sending.archive.settings)
        threads = SenderThreads(
            ledger=sending.ledger,
            hold=hold,
            archive=sending.archive,
            spool=Spool(sending.folder),
            settings=lambda: settings,
            commitment=sending.commitment,
            audit=AuditTrail(settings),
        )
        threads.start()
        wait_until(lambda: peer.requests, "the question about the first report")
        second = outgoing(sending.folder)
        queue(sending.ledger, second, time.time())
        threads.wake()
        wait_until(lambda: second.sop_instance_uid in peer.stored, "the second report stored", 20)
        threads.stop()
        assert not threads.finish(lambda: 0.1), "the question is still under way"


def never(_incoming: ReceivedInstance) -> None:
    raise AssertionError("no instance comes here")


def listener(sending: SendingRig, folder: Path, **settings: object) -> Listener:
    chosen = listener_settings(**settings)
    return Listener(chosen, folder / "incoming", never, commitment=lambda *told: sending.commitment.take_from(*told))


def test_the_answer_on_a_new_association_with_role_selection(sending: SendingRig, tmp_path: Path) -> None:
    with listening(listener(sending, tmp_path)) as ours:
        with committing_archive(lambda peer, _, request: peer.call_back(ours.port, request)) as peer:
            sending.to(peer.port)
            sending.send()
            sending.ask()
            wait_until(lambda: sending.states == ("stored", "done"), "the commitment")
        assert peer.response_statuses == [0x0000]


def test_the_answer_long_after_to_another_process(sending: SendingRig, tmp_path: Path) -> None:
    with listening(listener(sending, tmp_path)) as ours, committing_archive(silent) as peer:
        sending.to(peer.port, commitment_timeout_s=1000)
        sending.commitment._archive = _unlingering(sending.archive)
        sending.send()
        sending.ask()
        assert sending.states == ("committing", "sending")
        sending.ask()  # nobody answered the first request, whose answer counts nevertheless
        sending.to(peer.port)  # as after a restart: nothing of the request is in memory
        peer.call_back(ours.port, peer.requests[0])
        assert sending.states == ("stored", "done")
        assert peer.requests[0].TransactionUID != peer.requests[1].TransactionUID
        peer.call_back(ours.port, peer.requests[1])  # repeated: harmless
        assert peer.response_statuses == [0x0000, 0x0000]


def test_only_the_archive_of_the_settings_may_commit(sending: SendingRig, tmp_path: Path) -> None:
    with listening(listener(sending, tmp_path)) as ours, committing_archive(silent) as peer:
        sending.to(peer.port)
        sending.commitment._archive = _unlingering(sending.archive)
        sending.send()
        sending.ask()
        peer.call_back(ours.port, peer.requests[0], calling="STRANGER")
        stolen = peer.requests[0]
        stolen.TransactionUID = "2.25.1"
        peer.call_back(ours.port, stolen)
        assert peer.response_statuses == [0x0124, 0x0115]
        assert sending.states == ("committing", "sending")


def test_what_the_archive_lost_is_sent_again_and_then_committed(sending: SendingRig) -> None:
    with committing_archive(on_the_same_association) as peer:
        peer.refuse = lambda uid: NO_SUCH_INSTANCE if len(peer.stored) < 2 else None
        sending.to(peer.port)
        sending.send()
        began = time.time()
        sending.ask()
        assert sending.states == ("queued", "sending")
        assert "0x0112" in sending.row.reason
        assert began + 5 <= sending.row.next_attempt_at <= time.time() + 10, "with the first wait of the back-off"
        sending.send()
        sending.ask()
        assert sending.states == ("stored", "done")
    assert peer.stored == [sending.item.sop_instance_uid] * 2


def test_an_archive_that_never_commits_ends_in_a_state_that_operators_see(sending: SendingRig) -> None:
    with committing_archive(on_the_same_association) as peer:
        peer.refuse = lambda uid: NO_SUCH_INSTANCE
        sending.to(peer.port)
        for _ in range(3):
            sending.send()
            sending.ask()
        assert sending.states == ("failed", "failed")
        assert "does not commit" in sending.row.job_reason
        assert len(peer.stored) == 3
        peer.refuse = lambda uid: None
        with sending.ledger.write() as connection:
            assert jobs.retry(connection, sending.row.job_id, time.time()) == "sending"
        sending.send()
        sending.ask()
        assert sending.states == ("stored", "done")


def _unlingering(archive: Archive) -> Archive:
    """Does not keep the association open for an answer."""
    ask = archive.request_commitment
    archive.request_commitment = lambda *told, **limits: ask(*told, **limits | {"linger_s": 0})  # type: ignore[method-assign]
    return archive


def test_silence_is_asked_again_with_back_off_and_then_shown(sending: SendingRig) -> None:
    with committing_archive(silent) as peer:
        sending.to(peer.port, commitment_timeout_s=100)
        sending.commitment._archive = _unlingering(sending.archive)
        sending.send()
        for longest in (100, 200, 400):
            began = time.time()
            assert sending.ask() == 1
            assert sending.states == ("committing", "sending")
            assert began + longest / 2 <= sending.row.next_attempt_at <= time.time() + longest
        assert sending.ask() == 0
        assert sending.states == ("failed", "failed")
        assert "asked 3 times" in sending.row.job_reason
        assert len(peer.requests) == 3
        assert len(peer.stored) == 1


@pytest.mark.parametrize("status", [0x0000, 0x0110])
def test_each_report_waits_by_how_often_it_was_asked_about(status: int, sending: SendingRig) -> None:
    with committing_archive(silent, status=status) as peer:
        sending.to(peer.port, commitment_timeout_s=100)
        sending.commitment._archive = _unlingering(sending.archive)
        often = outgoing(sending.folder)
        queue(sending.ledger, often, time.time())
        sending.send()
        with sending.ledger.write() as connection:
            mine = BOX.c.sop_instance_uid == often.sop_instance_uid
            connection.execute(update(BOX).where(mine).values(commit_attempts=2))
        began = time.time()
        assert sending.ask() == 2
        with sending.ledger.read() as connection:
            once, thrice = connection.execute(select(BOX).order_by(BOX.c.commit_attempts)).all()
        assert (once.commit_attempts, thrice.commit_attempts) == (1, 3)
        assert began + 50 <= once.next_attempt_at <= time.time() + 100
        assert began + 200 <= thrice.next_attempt_at <= time.time() + 400
        with sending.ledger.write() as connection:
            assert outbox.due_now(connection, time.time(), max_commitment_wait_s=1600) == 0, (
                "a restart is no reason to ask"
            )
        assert sending.commitment.ask_due(hold()) == 0


def test_a_promise_that_comes_after_we_gave_up_counts_and_none_of_before_a_retry(
    sending: SendingRig, tmp_path: Path
) -> None:
    with listening(listener(sending, tmp_path)) as ours, committing_archive(silent) as peer:
        sending.to(peer.port, commitment_attempts=1)
        sending.commitment._archive = _unlingering(sending.archive)

        def ask_in_vain() -> None:
            sending.send()
            sending.ask()
            sending.ask()
            assert sending.states == ("failed", "failed")

        ask_in_vain()
        with sending.ledger.write() as connection:
            jobs.retry(connection, sending.row.job_id, time.time())
        ask_in_vain()
        peer.call_back(ours.port, peer.requests[0])
        assert sending.states == ("failed", "failed"), "it was sent again since"
        peer.call_back(ours.port, peer.requests[1])
        assert peer.response_statuses == [0x0115, 0x0000]
        assert sending.states == ("stored", "done")
        assert (sending.row.reason, sending.row.job_reason) == (None, None)


@pytest.mark.parametrize("way", ["no context", "failure status"])
def test_an_archive_without_storage_commitment_is_shown(way: str, sending: SendingRig) -> None:
    with committing_archive(silent, status=0x0110) as peer, stub() as plain:
        sending.to(peer.port if way == "failure status" else plain)
        sending.send()
        for _ in range(4):
            sending.ask()
        assert sending.states == ("failed", "failed")
        assert ("0x0110" if way == "failure status" else "no presentation context") in sending.row.job_reason


def test_an_archive_that_is_down_delays_the_question_and_counts_nothing(sending: SendingRig) -> None:
    with committing_archive(silent) as peer:
        sending.to(peer.port)
        sending.send()
    for _ in range(5):
        sending.ask()
    assert sending.states == ("committing", "sending")
    assert sending.row.commit_attempts == 0
    with committing_archive(on_the_same_association) as peer:
        sending.to(peer.port)
        sending.ask()
    assert sending.states == ("stored", "done")


def test_without_the_setting_stored_is_done_and_turning_it_off_frees_what_waits(sending: SendingRig) -> None:
    with committing_archive(silent) as peer:
        sending.to(peer.port)
        sending.send()
        sending.to(peer.port, commitment=False)
        sending.ask()
        assert sending.states == ("stored", "done")
        assert peer.requests == []


def test_commitment_needs_a_dicom_archive() -> None:
    settings = Settings.model_validate({"archive": {"stow_url": "http://localhost/dicom-web", "commitment": True}})
    with pytest.raises(ConfigurationError, match=r"archive\.commitment"):
        require_archive(settings)


@pytest.mark.peers
def test_orthanc_commits_on_an_association_of_its_own(
    new_service: Callable[..., Service], case: Case, tmp_path: Path
) -> None:
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        service = new_service((orthanc.aet, orthanc.dicom_port), settings={"archive": {"commitment": True}})
        orthanc.add_modality("mammod", service.aet, service.port)
        service.start()
        dcmsend(case.files, service.host, service.port, service.aet)
        service.wait_jobs("done")
        (item,) = service.outbox()
        assert (item.state, item.reason) == ("stored", None)
        assert "storage commitment" in service.log and orthanc.instances() == [item.sop_instance_uid]
        assert service.stop() == 0
