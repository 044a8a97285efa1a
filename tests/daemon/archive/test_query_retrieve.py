"""C-FIND, C-GET and C-MOVE against stub archives: what each answer means for the instance asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import evt
from pynetdicom.dsutils import split_dataset
from pynetdicom.sop_class import DigitalMammographyXRayImageStorageForPresentation as MG

from daemon.archive.query_retrieve import (
    FIND,
    GET,
    MOVE,
    RetrievedInstances,
    RetrieveKind,
    Wanted,
    _each,
    get_contexts,
    judge_get,
    judge_move,
)
from daemon.errors import ArchiveError, RefusedInstance
from daemon.storage.received_instance import ReceivedInstance
from tests.support.archive_stubs import archive, outgoing, stub

RETRIEVED, MISSING, RETRY, FAILED = RetrieveKind
WANTED = Wanted("1.2.3", "1.2.3.4", "1.2.3.4.5")
QUERY = [(model, [ExplicitVRLittleEndian]) for model in (FIND, GET, MOVE)]


def final(status: int | None, completed: int = 0, failed: int = 0, warning: int = 0) -> Dataset:
    dataset = Dataset()
    if status is not None:
        dataset.Status = status
        dataset.NumberOfCompletedSuboperations = completed
        dataset.NumberOfFailedSuboperations = failed
        dataset.NumberOfWarningSuboperations = warning
    return dataset


@pytest.mark.parametrize(
    ("answer", "kind"),
    [  # PS3.4 tables C.4-2 and C.4-3
        (final(0x0000, completed=1), RETRIEVED),
        (final(0x0000, warning=1), RETRIEVED),
        (final(0xB000, warning=1), RETRIEVED),
        (final(0x0000), MISSING),
        (final(0xB000, failed=1), RETRY),
        (final(0xA701), RETRY),
        (final(0xA702, failed=1), RETRY),
        (final(0xFE00), RETRY),
        (final(None), RETRY),
        (final(0xA801), FAILED),
        (final(0xA900), FAILED),
        (final(0xC000), FAILED),
        (final(0x0122), FAILED),
    ],
)
def test_the_final_response_is_judged(answer: Dataset, kind: RetrieveKind) -> None:
    assert judge_move(WANTED, answer).kind is kind


@pytest.mark.parametrize(
    ("stored", "kind"), [(0x0000, RETRIEVED), (0xA700, RETRY), (0xC000, FAILED), (0xA900, FAILED), (None, RETRY)]
)
def test_c_get_counts_only_what_was_taken_here(stored: int | None, kind: RetrieveKind) -> None:
    assert judge_get(WANTED, final(0x0000, completed=1), stored).kind is kind


def test_the_contexts_fit_one_association_and_each_class_has_its_role() -> None:
    contexts, roles = get_contexts()
    assert len(contexts) <= 128
    assert {context.abstract_syntax for context in contexts} == {GET, *(role.sop_class_uid for role in roles)}
    assert (MG, [JPEG2000Lossless]) in [(context.abstract_syntax, context.transfer_syntax) for context in contexts]


def test_find_fills_in_study_and_series_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        asked.append((query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID, query.SOPInstanceUID))
        for uid in ("1.2.3.4.5", "1.2.3.4.6"):  # an archive that does not filter by instance
            match = Dataset()
            match.StudyInstanceUID, match.SeriesInstanceUID, match.SOPInstanceUID = "1.2.3", "1.2.3.4", uid
            yield 0xFF00, match

    with stub(contexts=QUERY, handlers=((evt.EVT_C_FIND, on_find),)) as port:
        found = archive(port, tmp_path).find_instances([Wanted(None, None, "1.2.3.4.5"), Wanted(None, None, "1.9")])
    assert found == [WANTED]
    assert asked == [("IMAGE", "", "", "1.2.3.4.5"), ("IMAGE", "", "", "1.9")]


def test_find_walks_the_series_where_the_archive_insists_on_one(tmp_path: Path) -> None:
    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query, match = event.identifier, Dataset()
        match.StudyInstanceUID = query.StudyInstanceUID
        if query.QueryRetrieveLevel == "SERIES":
            for match.SeriesInstanceUID in ("1.2.3.9", "1.2.3.4"):
                yield 0xFF00, match
        elif not query.SeriesInstanceUID:
            yield 0xA900, None
        elif query.SeriesInstanceUID == "1.2.3.4":
            match.SeriesInstanceUID, match.SOPInstanceUID = "1.2.3.4", query.SOPInstanceUID
            yield 0xFF00, match

    with stub(contexts=QUERY, handlers=((evt.EVT_C_FIND, on_find),)) as port:
        assert archive(port, tmp_path).find_instances([Wanted("1.2.3", None, "1.2.3.4.5")]) == [WANTED]


def test_find_that_breaks_off_is_an_archive_error(tmp_path: Path) -> None:
    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        event.assoc.abort()
        yield 0x0000, None

    with (
        stub(contexts=QUERY, handlers=((evt.EVT_C_FIND, on_find),)) as port,
        pytest.raises(ArchiveError, match="C-FIND"),
    ):
        archive(port, tmp_path).find_instances([WANTED])


def serving(*files: Path) -> Any:
    """A C-GET handler that gives each of `files` for any identifier."""

    def on_get(event: evt.Event) -> Iterator[Any]:
        yield len(files)
        for file in files:
            yield 0xFF00, dcmread(file)

    return evt.EVT_C_GET, on_get


GETTING = [*QUERY, (str(MG), [ExplicitVRLittleEndian])]


def test_c_get_gives_the_instance_to_accept_and_leaves_nothing_behind(tmp_path: Path) -> None:
    item = outgoing(tmp_path, sop_class=str(MG))
    folder = tmp_path / "incoming"
    folder.mkdir()
    taken: list[ReceivedInstance] = []

    def accept(incoming: ReceivedInstance) -> None:
        taken.append(incoming)
        assert incoming.path.parent == folder
        assert dcmread(incoming.path) == dcmread(item.path)

    with stub(contexts=GETTING, handlers=(serving(item.path),)) as port:
        client = archive(port, folder)
        [outcome] = client.get_instances([Wanted("1.2.3", "1.2.3.4", item.sop_instance_uid)], accept)
    assert (outcome.kind, outcome.status) == (RETRIEVED, 0x0000)
    [incoming] = taken
    assert (incoming.sop_class_uid, incoming.sop_instance_uid) == (str(MG), item.sop_instance_uid)
    assert incoming.transfer_syntax_uid == ExplicitVRLittleEndian
    assert (incoming.calling_ae, incoming.called_ae, incoming.peer_address) == ("STUB", "MAMMOD", "127.0.0.1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [item.path]


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (RefusedInstance(0xC000, "no"), 0xC000, FAILED),
        (RefusedInstance(0xA700, "full"), 0xA700, RETRY),
        (OSError(28, "No space left on device"), 0xA700, RETRY),
        (ZeroDivisionError(), 0x0110, FAILED),
    ],
)
def test_c_get_answers_what_intake_says(raised: Exception, status: int, kind: RetrieveKind, tmp_path: Path) -> None:
    item = outgoing(tmp_path, sop_class=str(MG))

    def accept(incoming: ReceivedInstance) -> None:
        raise raised

    with stub(contexts=GETTING, handlers=(serving(item.path),)) as port:
        [outcome] = archive(port, tmp_path).get_instances([Wanted(None, None, item.sop_instance_uid)], accept)
    assert (outcome.kind, outcome.status) == (kind, status)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [item.path]


def test_c_get_refuses_what_was_not_asked_for(tmp_path: Path) -> None:
    other = outgoing(tmp_path, sop_class=str(MG))
    taken: list[ReceivedInstance] = []
    with stub(contexts=GETTING, handlers=(serving(other.path),)) as port:
        [outcome] = archive(port, tmp_path).get_instances([WANTED], taken.append)
    assert outcome.kind is RETRY
    assert taken == []


def test_c_get_refuses_a_data_set_that_was_cut(tmp_path: Path) -> None:
    item = outgoing(tmp_path, sop_class=str(MG))
    _, start = split_dataset(item.path)
    content = item.path.read_bytes()
    request = SimpleNamespace(MessageID=1, AffectedSOPClassUID=MG, AffectedSOPInstanceUID=item.sop_instance_uid)
    event = SimpleNamespace(
        request=request,
        assoc=None,
        context=SimpleNamespace(transfer_syntax=ExplicitVRLittleEndian),
        encoded_dataset=lambda include_meta=True: content[0 if include_meta else start : -1],
    )
    taken: list[ReceivedInstance] = []
    receiver = RetrievedInstances(tmp_path, taken.append)
    receiver.expected = item.sop_instance_uid
    assert receiver(event) == receiver.status == 0xC000
    assert taken == []


def test_c_get_and_c_move_that_break_off_leave_the_rest_to_be_retried(tmp_path: Path) -> None:
    calls: list[int] = []

    def off(event: evt.Event) -> Iterator[Any]:
        calls.append(1)
        event.assoc.abort()
        yield 1

    def off_move(event: evt.Event) -> Iterator[Any]:
        calls.append(1)
        event.assoc.abort()
        yield None, None

    with stub(contexts=GETTING, handlers=((evt.EVT_C_GET, off), (evt.EVT_C_MOVE, off_move))) as port:
        client = archive(port, tmp_path, timeout_s=20)
        got = client.get_instances([WANTED, WANTED], lambda incoming: None)
        moved = client.move_instances([WANTED, WANTED], "MAMMOD")
    assert [outcome.kind for outcome in got + moved] == [RETRY] * 4
    assert len(calls) == 2


def test_nothing_is_asked_on_an_association_that_broke() -> None:
    asked: list[Wanted] = []

    def silent(item: Wanted) -> Dataset:
        asked.append(item)
        return Dataset()

    assert list(_each([WANTED, WANTED], silent)) == [(WANTED, Dataset())] * 2
    assert len(asked) == 1


def test_c_move_to_an_unknown_destination_fails(tmp_path: Path) -> None:
    def on_move(event: evt.Event) -> Iterator[Any]:
        yield None, None  # pynetdicom answers A801

    with stub(contexts=QUERY, handlers=((evt.EVT_C_MOVE, on_move),)) as port:
        [outcome] = archive(port, tmp_path).move_instances([WANTED], "NOBODY")
    assert (outcome.kind, outcome.status) == (FAILED, 0xA801)
    assert "AE title" in outcome.reason
