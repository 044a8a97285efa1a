"""DCMTK programs as modality: what they send is stored to the byte, in every transfer syntax they make."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from daemon.receiving.listener import Listener
from tests.support.peers.programs import dcmsend, program, storescu, wait_until
from tests.support.scu import HOST, Accepted, data_set_bytes, listener_settings, listening, mammogram, write

pytestmark = pytest.mark.peers


def _jpeg_2000(source: Path, target: Path) -> None:
    dataset = pydicom.dcmread(source)
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    dataset.save_as(target)


def _dcmtk(name: str, *options: str) -> Callable[[Path, Path], None]:
    def convert(source: Path, target: Path) -> None:
        subprocess.run([program(name), *options, str(source), str(target)], check=True, timeout=60)

    return convert


# Each transfer syntax that can be made here, how, and the option that makes storescu propose it.
SYNTAXES = {
    "1.2.840.10008.1.2": (_dcmtk("dcmconv", "+ti"), "-xi"),
    "1.2.840.10008.1.2.1": (_dcmtk("dcmconv", "+te"), "-xe"),
    "1.2.840.10008.1.2.1.99": (_dcmtk("dcmconv", "+td"), "-xd"),
    "1.2.840.10008.1.2.2": (_dcmtk("dcmconv", "+tb"), "-xb"),
    "1.2.840.10008.1.2.4.50": (_dcmtk("dcmcjpeg", "+eb", "+un"), "-xy"),
    "1.2.840.10008.1.2.4.51": (_dcmtk("dcmcjpeg", "+ee", "+un"), "-xx"),
    "1.2.840.10008.1.2.4.57": (_dcmtk("dcmcjpeg", "+el", "+un"), None),
    "1.2.840.10008.1.2.4.70": (_dcmtk("dcmcjpeg", "+e1", "+un"), "-xs"),
    "1.2.840.10008.1.2.4.80": (_dcmtk("dcmcjpls", "+el", "+un"), "-xt"),
    "1.2.840.10008.1.2.4.81": (_dcmtk("dcmcjpls", "+en", "+un"), "-xu"),
    "1.2.840.10008.1.2.4.90": (_jpeg_2000, "-xv"),
    "1.2.840.10008.1.2.5": (_dcmtk("dcmcrle", "+un"), "-xr"),
}


def _senders() -> Iterator[tuple[str, str]]:
    for syntax, (_, option) in SYNTAXES.items():
        if option is None:
            yield syntax, ""  # dcmsend proposes what the file has
            continue
        yield syntax, f"-R {option}"
        if option != "-xb":  # from one context with several uncompressed ones, big endian is not chosen: see below
            yield syntax, f"-R +C {option}"


@pytest.mark.parametrize(("syntax", "options"), _senders())
def test_bytes_are_stored_as_sent(
    listener: Listener, accepted: Accepted, tmp_path: Path, syntax: str, options: str
) -> None:
    convert, _ = SYNTAXES[syntax]
    file = tmp_path / "sent.dcm"
    convert(write(mammogram(), tmp_path / "source.dcm"), file)
    uid = pydicom.dcmread(file).SOPInstanceUID
    if options:
        statuses = storescu([file], HOST, listener.port, "MAMMOD", options=options.split())
    else:
        statuses = dcmsend([file], HOST, listener.port, "MAMMOD", options=("-dn", "-nh"))
    assert statuses == {uid: 0x0000}
    assert [one.transfer_syntax_uid for one in accepted] == [syntax]
    stored = accepted.file(uid)
    assert pydicom.dcmread(stored).file_meta.TransferSyntaxUID == syntax
    if syntax == "1.2.840.10008.1.2.1.99":  # DCMTK deflates anew
        assert pydicom.dcmread(stored) == pydicom.dcmread(file)
    else:
        assert data_set_bytes(stored) == data_set_bytes(file)


def test_sender_that_offers_all_uncompressed_in_one_context_gets_explicit_vr(
    listener: Listener, accepted: Accepted, tmp_path: Path
) -> None:
    file = write(mammogram(), tmp_path / "sent.dcm", "1.2.840.10008.1.2")
    storescu([file], HOST, listener.port, "MAMMOD", options=("-R", "+C", "-xb"))  # big endian named first
    assert [one.transfer_syntax_uid for one in accepted] == ["1.2.840.10008.1.2.1"]


def test_eight_associations_at_once_lose_nothing(listener: Listener, accepted: Accepted, tmp_path: Path) -> None:
    sets = [
        [write(mammogram(10 * sender + image + 1, 512), tmp_path / f"{sender}-{image}.dcm") for image in range(10)]
        for sender in range(8)
    ]

    def send(files: list[Path]) -> dict[str, int]:
        return dcmsend(files, HOST, listener.port, "MAMMOD")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, sets))
    assert [set(statuses.values()) for statuses in answers] == [{0x0000}] * 8
    assert {one.sop_instance_uid for one in accepted} == {mammogram(number + 1).SOPInstanceUID for number in range(80)}
    assert len({one.association_id for one in accepted}) == 8
    for file in (file for files in sets for file in files):
        assert data_set_bytes(accepted.file(pydicom.dcmread(file).SOPInstanceUID)) == data_set_bytes(file)


def test_rejections_as_dcmtk_reads_them(tmp_path: Path, accepted: Accepted) -> None:
    peers = [{"ae_title": "KNOWN"}]
    with listening(Listener(listener_settings(peers=peers), tmp_path / "incoming", accepted)) as listener:
        assert "Called AE Title Not Recognized" in _echo(listener.port, "KNOWN", "OTHER")
        assert "Calling AE Title Not Recognized" in _echo(listener.port, "UNKNOWN", "MAMMOD")
        assert "Received Echo Response (Success)" in _echo(listener.port, "KNOWN", "MAMMOD")
    admit = lambda: "the disk is nearly full"  # noqa: E731
    with listening(Listener(listener_settings(), tmp_path / "incoming", accepted, full=admit)) as listener:
        answer = _echo(listener.port, "KNOWN", "MAMMOD")
        assert "Rejected Transient" in answer
        assert "Temporary Congestion" in answer


def _echo(port: int, calling: str, called: str) -> str:
    command = [program("echoscu"), "-v", "-aet", calling, "-aec", called, HOST, str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def test_sender_killed_half_way_leaves_nothing(listener: Listener, accepted: Accepted, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    file = write(mammogram(size=6144), tmp_path / "large.dcm")
    sender = subprocess.Popen([program("storescu"), "-R", "-aec", "MAMMOD", HOST, str(listener.port), str(file)])
    try:
        wait_until(lambda: any(path.stat().st_size > 1 << 20 for path in incoming.iterdir()), "a part is received")
    finally:
        sender.kill()
        sender.wait(10)
    wait_until(lambda: not any(incoming.iterdir()), "the half-received file is removed")
    assert accepted == []
    assert set(dcmsend([write(mammogram(), tmp_path / "next.dcm")], HOST, listener.port, "MAMMOD").values()) == {0x0000}
