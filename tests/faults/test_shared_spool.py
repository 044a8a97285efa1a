"""A spool in a bucket: accepted only once the bucket has it, read on any node; the cost of a failing bucket.

Against a real S3 server on loopback (tests/support/peers/s3.py).
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config import settings
from config.errors import ConfigurationError
from config.settings import Settings
from daemon.checks.run import deep_findings, findings
from daemon.errors import SpoolUnavailable
from daemon.ledger import Ledger
from daemon.ledger.schema import instances as instance_table
from daemon.maintenance.consistency_check import check_consistency
from daemon.maintenance.retention import delete_orphans, size_limit
from daemon.receiving.intake import Intake
from daemon.receiving.listener import Listener
from daemon.storage import s3_store
from daemon.storage.s3_store import S3Store
from daemon.storage.spool import Spool, open_spool
from tests.support.cases import Case
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.peers.s3 import BUCKET, KEY, S3, SECRET, running_s3
from tests.support.scu import encode, listener_settings, listening, mammogram, request_association, store
from tests.support.services import Service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with running_s3(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    server.new_prefix()
    server.fault("")
    yield server
    server.fault("")


Node = Callable[..., Spool]


@pytest.fixture
def node(s3: S3, tmp_path: Path) -> Node:
    """Makes the spools of nodes, each with a directory of its own over the one bucket."""
    return lambda name, **more: open_spool(settings.Spool(**s3.settings(tmp_path / name, **more)))


def received(spool: Spool, content: bytes, name: str = "x") -> Path:
    """A Part 10 file of which only the length of the meta information matters here."""
    path = spool.incoming / f"{name}.part"
    path.write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + bytes(4) + content)
    return path


def test_placed_on_one_node_and_read_on_another(s3: S3, node: Node) -> None:
    first, second = node("a"), node("b")
    file = received(first, b"image" * 100_000)
    placed = first.add_instance(file, "1.2.3")
    assert s3.objects() == {placed.path: file.read_bytes()}
    report = first.write_report("1.2.4", b"report")
    assert second.has(placed.path) and second.has(report.path)
    with second.reading() as file_of:
        assert file_of(placed.path).read_bytes() == file.read_bytes()
        assert file_of(report.path).read_bytes() == b"report"
        assert not file_of("instances/00/none.dcm").exists(), "as with a directory"
    assert not second.has("instances/00/none.dcm")
    assert second.delete([placed.path]) == 1
    assert set(s3.objects()) == {report.path}
    assert not list(second.directory.rglob("*.tmp"))
    modes = {path.stat().st_mode & 0o777 for path in second.directory.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_copies_go_when_they_take_more_than_the_cache_but_for_what_is_read(node: Node) -> None:
    spool = node("a", cache=100_000)

    def copies() -> list[bool]:
        return [spool.absolute(one.path).exists() for one in placed]

    placed = [spool.add_instance(received(spool, bytes([n]) * 25_000, f"{n}"), f"1.2.{n}") for n in range(3)]
    for age, one in zip((300, 200, 100), placed, strict=True):
        os.utime(spool.absolute(one.path), (time.time() - age, time.time() - age))
    assert copies() == [True] * 3
    with spool.reading() as file_of:
        held = file_of(placed[0].path)
        os.utime(held, (1, 1))  # by its age it would be the first
        placed.append(spool.add_instance(received(spool, b"4" * 25_000, "4"), "1.2.4"))
        assert copies() == [True, False, True, True]
    with spool.reading() as file_of:
        assert file_of(placed[1].path).read_bytes().endswith(bytes([1]) * 25_000), "fetched again"
    assert copies() == [False, True, True, True]


def test_a_bucket_that_holds_other_bytes_is_no_acceptance(s3: S3, node: Node) -> None:
    spool = node("a")
    s3.fault("PUT corrupt")
    with pytest.raises(SpoolUnavailable, match="does not hold what was sent"):
        spool.add_instance(received(spool, b"image"), "1.2.3")


@pytest.mark.parametrize("fault", ["GET cut", "GET 500"])
def test_a_file_that_does_not_come_whole_is_no_copy(fault: str, s3: S3, node: Node) -> None:
    first, second = node("a"), node("b")
    placed = first.add_instance(received(first, b"image" * 1000), "1.2.3")
    s3.fault(fault)
    with pytest.raises(SpoolUnavailable), second.reading() as file_of:
        file_of(placed.path)
    assert [path for path in second.directory.rglob("*") if path.is_file()] == []
    s3.fault("")
    with second.reading() as file_of:
        assert file_of(placed.path).stat().st_size == placed.size


def test_an_object_that_was_changed_is_not_read(s3: S3, node: Node) -> None:
    """The bytes are compared with the SHA-256 noted with the object, not with what the server says."""
    first, second = node("a"), node("b")
    placed = first.add_instance(received(first, b"image" * 1000), "1.2.3")
    whole = s3.objects()[placed.path]
    s3.put(placed.path, whole[:-1] + b"\x77", sha256=hashlib.sha256(whole).hexdigest())
    with pytest.raises(SpoolUnavailable, match="gave other bytes"), second.reading() as file_of:
        file_of(placed.path)


def test_a_server_that_hangs_is_given_up(s3: S3, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = node("a")
    monkeypatch.setattr(s3_store, "ANSWER_LIMIT_S", 1)
    s3.fault("PUT stuck")
    with pytest.raises(SpoolUnavailable, match="no answer in time"):
        spool.add_instance(received(spool, b"image"), "1.2.3")


class Receiving:
    """Listener and intake of one node over the bucket."""

    def __init__(self, spool: Spool, folder: Path) -> None:
        self.spool = spool
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        intake = Intake(spool, self.ledger, "bundle", lambda: None)
        self.listener = Listener(listener_settings(), spool.incoming, intake.accept)

    def send(self, *images: Any) -> list[int]:
        association = request_association(self.listener.port)
        assert association.is_established
        statuses = [store(association, encode(image), image.SOPInstanceUID).Status for image in images]
        association.release()
        return statuses

    def known(self) -> dict[str, str]:
        with self.ledger.read() as connection:
            rows = connection.execute(instance_table.select()).all()
        return {row.sop_instance_uid: row.path for row in rows}


@pytest.mark.parametrize("fault", ["PUT 500", "PUT corrupt", "* 503", "HEAD 500"])
def test_a_sender_is_told_out_of_resources_until_the_bucket_has_it(
    fault: str, s3: S3, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "RETRY_AFTER_S", 0)
    receiving = Receiving(node("a"), tmp_path)
    first, second = mammogram(1), mammogram(2)
    with listening(receiving.listener):
        assert receiving.send(first) == [0]
        s3.fault(fault)
        assert receiving.send(second) == [0xA700]
        assert set(receiving.known()) == {first.SOPInstanceUID}
        s3.fault("")
        assert receiving.send(second) == [0]
    known = receiving.known()
    assert set(known) == {first.SOPInstanceUID, second.SOPInstanceUID}
    assert set(s3.objects()) == set(known.values())
    assert not list(receiving.spool.incoming.iterdir())
    receiving.ledger.close()


def test_a_server_that_dies_in_the_middle_of_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3(tmp_path / "s3") as s3:
        receiving = Receiving(open_spool(settings.Spool(**s3.settings(tmp_path / "a"))), tmp_path)
        image = mammogram(1)
        with listening(receiving.listener):
            s3.fault("PUT die")
            assert receiving.send(image) == [0xA700]
            assert s3.process is not None and s3.process.wait(10) == 1
            began = time.monotonic()
            with pytest.raises(Exception, match="cannot be reached"):
                receiving.spool.check_room()  # what the service refuses associations by
            assert time.monotonic() - began < 1, "without asking the server again"
            s3.fault("")
            s3.start()
            monkeypatch.setattr(s3_store, "RETRY_AFTER_S", 0)
            assert receiving.send(image) == [0]
        assert set(s3.objects()) == set(receiving.known().values())
        receiving.ledger.close()


def test_orphans_in_the_bucket_are_deleted_when_old_and_a_start_leaves_them(
    s3: S3, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = node("a")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    receiving = Receiving(spool, tmp_path)
    with listening(receiving.listener):
        assert receiving.send(mammogram(1)) == [0]
    orphan = spool.add_instance(received(spool, b"no row"), "1.2.3")
    half = received(spool, b"half", "half")
    assert spool.delete_receiving(spool.receiving_processes()) >= 1
    assert spool.delete_orphans(set(receiving.known().values()), time.time() + 60) == 0
    assert not half.exists(), "what a start finds half received goes"
    assert orphan.path in s3.objects(), "another node may be about to write its row"
    assert delete_orphans(ledger, spool) == 0, "it is young"
    monkeypatch.setattr("daemon.maintenance.retention.ORPHAN_AFTER_S", -60)
    assert delete_orphans(ledger, spool) == 1
    assert set(s3.objects()) == set(receiving.known().values())
    assert not spool.absolute(orphan.path).exists(), "nor is a copy left"
    receiving.ledger.close()
    ledger.close()


def test_a_deep_check_looks_into_the_bucket_and_not_at_copies(s3: S3, node: Node, tmp_path: Path) -> None:
    receiving = Receiving(node("a"), tmp_path)
    images = [mammogram(number) for number in range(1, 4)]
    with listening(receiving.listener):
        assert receiving.send(*images) == [0] * 3
    good, changed, gone = (receiving.known()[image.SOPInstanceUID] for image in images)
    found = check_consistency(receiving.ledger, receiving.spool)
    assert (found.faults, found.instances) == ([], 3)
    assert found.bytes_hashed == sum(map(len, s3.objects().values()))
    s3.put(changed, s3.objects()[changed][:-1] + b"\x77")
    s3.delete(gone)
    faults = check_consistency(receiving.ledger, receiving.spool).faults
    assert len(faults) == 2 and not any(good in fault for fault in faults), faults
    assert any(changed in fault and "is not what was written" in fault for fault in faults), faults
    assert any(gone in fault and "is missing" in fault for fault in faults)
    chosen = Settings(spool=s3.settings(tmp_path / "a"), ledger={"url": f"sqlite:///{tmp_path / 'ledger.sqlite'}"})
    s3.fault("* 503")
    (said,) = deep_findings(chosen)
    assert not said.good and "ServiceUnavailable" in said.text
    receiving.ledger.close()


def spool_finding(section: dict[str, Any]) -> tuple[bool, str]:
    said = next(iter(findings(Settings(spool=section), allow_untrained=False)))
    assert said.subject == "spool"
    return said.good, said.text


def test_check_says_in_plain_words_what_is_wrong_with_the_bucket(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = s3.settings(tmp_path / "spool")
    good, text = spool_finding(section)
    assert good and f"bucket {BUCKET} at {s3.endpoint} stores, returns and deletes objects" in text
    assert "unencrypted" in text
    assert s3.objects() == {}

    good, text = spool_finding(section | {"url": "s3://no-such-bucket/x"})
    assert not good and "there is no such bucket" in text
    good, text = spool_finding(section | {"endpoint": "http://127.0.0.1:1"})
    assert not good and "cannot be reached" in text
    s3.fault("PUT 403")
    good, text = spool_finding(section)
    assert not good and "put_object" in text and "s3:GetObject" in text
    s3.fault("POST 403")  # several objects are deleted by POST
    good, text = spool_finding(section)
    assert not good and "DeleteObject" in text
    s3.fault("")

    wrong = tmp_path / "wrong"
    for content, expected in (("[default]\n", "holds no key"), ("no such thing", "is no such file")):
        wrong.write_text(content)
        good, text = spool_finding(section | {"credentials_file": str(wrong)})
        assert not good and expected in text
    good, text = spool_finding(section | {"credentials_file": str(tmp_path / "nowhere")})
    assert not good and "cannot be read" in text
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    without = {name: value for name, value in section.items() if name != "credentials_file"}
    good, text = spool_finding(without)
    assert not good and "there are no credentials" in text
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert spool_finding(without)[0], "those of the environment"


def test_wrong_credentials_are_named_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A server of its own: from now on it asks who calls."""
    with running_s3(tmp_path / "s3") as s3:
        key, secret = s3.demand_credentials()
        section = s3.settings(tmp_path / "spool")
        chosen = S3Store(settings.Spool(**section))
        good, text = spool_finding(section)
        assert not good and "does not know these credentials (InvalidAccessKeyId)" in text
        assert SECRET not in text
        s3.credentials.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret[:-1]}x\n")
        good, text = spool_finding(section)
        assert not good and "does not know these credentials (SignatureDoesNotMatch)" in text
        with pytest.raises(SpoolUnavailable, match="credentials"):
            chosen.probe(tmp_path / "spool")
        s3.credentials.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
        chosen.probe(tmp_path / "spool")
        assert spool_finding(section)[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "s3://user:pass@bucket/x"},
        {"url": "https://bucket/x"},
        {"url": "s3://bucket/x", "endpoint": "https://user:pass@host"},
        {"endpoint": "https://host"},
        {"credentials_file": "/x"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        settings.Spool(**wrong)


def test_a_share_of_a_disk_is_none_of_a_bucket() -> None:
    assert size_limit(settings.Retention(max_disk_fraction=0.5), None) is None
    assert size_limit(settings.Retention(max_disk_fraction=0.5, max_bytes=1000), None) == 1000  # type: ignore[arg-type]


def test_without_the_extra_it_says_which_to_install(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ConfigurationError, match=r"install mammod\[s3\]"):
        open_spool(settings.Spool(**s3.settings(tmp_path / "a")))


@pytest.mark.peers
def test_the_service_over_a_bucket(
    s3: S3, new_service: Callable[..., Service], storescp: StoreSCP, case: Case, tmp_path: Path
) -> None:
    """A node writes the report; after a restart another node with an empty directory sends it."""
    section = s3.settings(tmp_path / "spool-1")
    apart = {"ledger": {"url": f"sqlite:///{tmp_path / 'ledger.sqlite'}"}, "log": {"level": "debug"}}
    first = new_service(("STORESCP", 1), settings={"spool": section, **apart}, name="first")
    first.start()
    s3.fault("* 503")
    refused = dcmsend(case.files, first.host, first.port, first.aet)
    assert set(refused.values()) <= {0xA700}, "or the association itself was refused"
    s3.fault("")

    def accepted() -> bool:
        statuses = dcmsend(case.files, first.host, first.port, first.aet)
        return len(statuses) == 2 and set(statuses.values()) == {0}

    wait_until(accepted, "the bucket taken up again", 60)
    ledger = Ledger(apart["ledger"]["url"])
    wait_until(lambda: len(s3.objects()) == 3, "image, segmentation and report in the bucket", 60)
    assert first.stop() == 0
    log = first.log
    assert "ServiceUnavailable" in log and SECRET not in log and KEY not in log and "CASE-1" not in log

    other = s3.settings(tmp_path / "spool-2")
    second = new_service((storescp.aet, storescp.dicom_port), settings={"spool": other, **apart}, name="second")
    second.start()
    wait_until(lambda: storescp.files(), "the report in the archive", 60)
    assert second.stop() == 0
    (report,) = storescp.files()
    with ledger.read() as connection:
        rows = connection.exec_driver_sql("SELECT sop_instance_uid, state FROM outbox").all()
    assert [tuple(row) for row in rows] == [(report, "stored")]
    ledger.close()


def test_many_at_once(s3: S3, node: Node) -> None:
    """Threads of the listener, workers and sender share one client."""
    first, second = node("a"), node("b")
    placed: dict[int, str] = {}

    def place(number: int) -> None:
        placed[number] = first.add_instance(
            received(first, bytes([number]) * 50_000, f"{number}"), f"1.2.{number}"
        ).path
        with second.reading() as file_of:
            assert file_of(placed[number]).read_bytes().endswith(bytes([number]) * 50_000)

    threads = [threading.Thread(target=place, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(s3.objects()) == set(placed.values()) and len(placed) == 16
