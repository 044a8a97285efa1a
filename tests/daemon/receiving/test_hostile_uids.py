"""UIDs from the wire never reach a path unchecked, nor the ledger, where they are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from daemon.errors import RefusedInstance
from daemon.ledger import Ledger, instances
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
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
    write,
)

HOSTILE = [
    "../../../../tmp/x",
    "/etc/passwd",
    "1.2.3\x00/../x",
    "..",
    "1.2.3/4",
    "9" * 5000,
    "~root",
    "1.2\n.3",
    "${HOME}",
    "-rf",
]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger' / 'ledger.sqlite'}")
    yield opened
    opened.close()


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore:.* VR UI")
@pytest.mark.parametrize("uid", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_sop_instance_uid_is_refused_by_the_listener_and_leaves_no_file(uid: str, tmp_path: Path) -> None:
    accepted = Accepted(tmp_path / "accepted")
    before = everything(tmp_path.parent)
    dataset = mammogram()
    dataset.SOPInstanceUID = uid
    with listening(Listener(listener_settings(), tmp_path / "incoming", accepted)) as listener:
        association = request_association(listener.port)
        for in_data_set, in_command in ((encode(dataset), uid), (encode(mammogram()), uid), (encode(dataset), "1.2.3")):
            answer = store(association, in_data_set, in_command)
            assert answer.Status in (0x0117, 0xA900, 0xC000) if "Status" in answer else association.is_aborted
            if association.is_aborted:
                association = request_association(listener.port)
        association.abort()
    assert accepted == []
    assert everything(tmp_path.parent) - before == {f"{tmp_path.name}/incoming"}


@pytest.mark.filterwarnings("ignore:.* VR UI")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("uid", [*HOSTILE[:5], "1." * 40, "1.2.3\\1.2.4", "DOE^JANE"], ids=range(8))
def test_a_study_or_series_uid_that_is_none_is_refused_by_intake(
    keyword: str, uid: str, spool: Spool, ledger: Ledger, tmp_path: Path
) -> None:
    dataset = mammogram()
    setattr(dataset, keyword, uid)
    path = write(dataset, tmp_path / "received.dcm")
    incoming = ReceivedInstance(path, MAMMOGRAM, dataset.SOPInstanceUID, EXPLICIT, "PACS", "MAMMOD", "127.0.0.1", "a1")
    before = everything(spool.directory)
    with pytest.raises(RefusedInstance) as refused:
        Intake(spool, ledger, "bundle", lambda: None).accept(incoming)
    assert (refused.value.status, keyword in refused.value.reason, uid in refused.value.reason) == (0xC000, True, False)
    assert everything(spool.directory) == before
    with ledger.read() as connection:
        assert instances.received(connection) == 0


@given(st.text(max_size=200))
@example("../../x")
@example("a\x00b")
@example("/etc/passwd")
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_spools_names_are_digests_whatever_the_uid(spool: Spool, uid: str) -> None:
    received = spool.incoming / "x.part"
    received.write_bytes(bytes(128) + b"DICM" + bytes(16))
    placed = [spool.add_instance(received, uid), spool.write_report(uid, b"report")]
    for one, folder in zip(placed, ("instances", "outbox"), strict=True):
        root, short, name = Path(one.path).parts
        assert (root, short, len(name)) == (folder, name[:2], 64 + len(".dcm"))
        assert os.path.commonpath([spool.absolute(one.path).resolve(), spool.directory.resolve()]) == str(
            spool.directory.resolve()
        )
    spool.delete(one.path for one in placed)
