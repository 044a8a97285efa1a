"""Duplicates: a study ten times over eight associations; other pixels or another study under the same UID."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import evt

from tests.support.archive_stubs import stub
from tests.support.cases import make_case
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.persistent_sender import PersistentSender
from tests.support.services import Service, save

TIMES = 10


@pytest.mark.peers
def test_the_same_study_ten_times_over_eight_associations_and_then_changed(
    new_service: Callable[..., Service], tmp_path: Path
) -> None:
    stores: list[tuple[str, str]] = []  # what the archive was sent: SOP Instance UID, Study Instance UID

    def on_store(event: evt.Event) -> int:
        stores.append((str(event.dataset.SOPInstanceUID), str(event.dataset.StudyInstanceUID)))
        return 0x0000

    cases = [make_case(tmp_path / "cases", number) for number in (1, 2, 3)]
    files = [path for case in cases for path in case.files] * TIMES
    random.Random(5).shuffle(files)
    with stub(on_store) as port:
        service = new_service(("STUB", port))
        service.start()
        sender = PersistentSender(service.host, service.port, service.aet, associations=8)
        for path in files:
            sender.send(path)
        wait_until(lambda: sum(sender.accepted.values()) == len(files), "every copy answered with success", 90)
        sender.stop()
        assert set(sender.accepted.values()) == {TIMES}
        service.wait_jobs("done", "done", "done")
        rows = service.instances()
        assert len(rows) == 6 and {row.times_received for row in rows} == {TIMES}
        assert len(stores) == len({uid for uid, _ in stores}) == 3, "each report was sent once"

        # The same SOP Instance UID with other pixels; then in another study.
        image = cases[0].image
        uid, first_study = image.SOPInstanceUID, image.StudyInstanceUID
        image.PixelData = bytes(value ^ 0x11 for value in image.PixelData)
        versions = [save(image, tmp_path / "pixels.dcm")]
        image.StudyInstanceUID = generate_uid()
        versions.append(save(image, tmp_path / "study.dcm"))
        for number, path in enumerate(versions, start=2):
            assert set(dcmsend([path], service.host, service.port, service.aet).values()) == {0}
            wait_until(lambda many=number + 2: len(stores) == many, "another report", 90)
            service.wait_jobs("done", "done", "done")
            mine = [row for row in service.instances() if row.sop_instance_uid == uid]
            assert Counter(row.state for row in mine) == {"current": 1, "superseded": number - 1}, (
                "all versions are kept"
            )
            assert service.log.count("same SOP Instance UID with other content") == number - 1
        assert [row.study_uid for row in mine] == [first_study, first_study, image.StudyInstanceUID]
        first, second, third = (
            dcmread(service.spool / row.path)
            for row in service.outbox()
            if row.source_uid == cases[0].segmentation.SOPInstanceUID
        )
        for older, newer in ((first, second), (second, third)):
            named = newer.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
            assert named.ReferencedSOPInstanceUID == older.SOPInstanceUID
        assert service.stop() == 0
