"""Digests of data sets: BLAKE3, and SHA-256 of older ledgers; expected values are published or hashlib's."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from sqlalchemy import select, update

from daemon.dicom.digest import DataSetDigest, digest_of, has_digest
from daemon.dicom.part10 import part_10_start
from daemon.ledger import Ledger
from daemon.ledger.schema import instances
from daemon.maintenance.consistency_check import check_consistency
from daemon.receiving.intake import Intake
from daemon.storage.received_instance import ReceivedInstance
from daemon.storage.spool import Spool
from tests.support.cases import make_case
from tests.support.services import save

# https://github.com/BLAKE3-team/BLAKE3: of nothing, and of "abc"
PUBLISHED = {
    b"": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    b"abc": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}


@pytest.mark.parametrize("content", PUBLISHED)
def test_the_digest_is_blake3_of_the_data_set(content: bytes, tmp_path: Path) -> None:
    digest = DataSetDigest()
    for byte in content:
        digest.update(bytes([byte]))
    expected = "blake3-" + base64.urlsafe_b64encode(bytes.fromhex(PUBLISHED[content])).decode().rstrip("=")
    assert str(digest) == expected and len(expected) == 50
    for syntax in ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2"):  # whatever the file meta information says
        file = tmp_path / syntax
        file.write_bytes(part_10_start("1.2.3", "1.2.4", syntax) + content)
        assert digest_of(file) == expected
        assert has_digest(file, expected) and has_digest(file, hashlib.sha256(content).hexdigest())
        assert not has_digest(file, hashlib.sha256(b"x").hexdigest()) and not has_digest(file, expected[:-1] + "-")


def test_what_an_older_version_recorded_is_known_again(tmp_path: Path, ledger: Ledger) -> None:
    """The same content is a duplicate, and leaves no file without a row; other content is a change."""
    spool = Spool(tmp_path / "spool")
    woken: list[str] = []
    intake = Intake(spool, ledger, "bundle", lambda: woken.append("woken"))
    case = make_case(tmp_path / "cases", 1)

    def accept(patient: str) -> None:
        case.image.PatientName = patient
        path = save(case.image, spool.incoming / "x.part")
        syntax, image = str(case.image.file_meta.TransferSyntaxUID), case.image
        intake.accept(
            ReceivedInstance(path, image.SOPClassUID, image.SOPInstanceUID, syntax, "A", "B", "127.0.0.1", "a1")
        )
        path.unlink()

    accept("A")
    with ledger.write() as connection:
        (row,) = connection.execute(select(instances)).all()
        content = spool.absolute(row.path).read_bytes()
        old = "instances/00/as-it-was.dcm"
        spool.absolute(row.path).rename(spool.absolute(old))
        meta = 144 + int.from_bytes(content[140:144], "little")
        sha256 = hashlib.sha256(content[meta:]).hexdigest()
        connection.execute(update(instances).values(digest=sha256, path=old))
    assert check_consistency(ledger, spool).faults == []

    accept("A")
    with ledger.read() as connection:
        (row,) = connection.execute(select(instances)).all()
    assert (row.digest, row.times_received, row.state) == (sha256, 2, "current"), "what was made of it keeps its name"
    assert [entry.path for entry in spool.entries()] == [row.path] != [old]
    spool.absolute(row.path).write_bytes(b"damaged")
    assert check_consistency(ledger, spool).faults != []
    accept("A")
    assert check_consistency(ledger, spool).faults == [], "sending it again mends it"

    accept("B")
    with ledger.read() as connection:
        rows = connection.execute(select(instances).order_by(instances.c.id)).all()
    assert [row.state for row in rows] == ["superseded", "current"]
    assert rows[1].digest.startswith("blake3-") and len(spool.entries()) == 2

    spool.absolute(rows[0].path).write_bytes(content[:-2] + b"xx")
    (fault,) = check_consistency(ledger, spool).faults
    assert "is not what was written" in fault
