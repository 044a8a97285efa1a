"""The data set scan: data sets that pydicom wrote, files of many vendors, cuts at any byte, random bytes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.filewriter import write_dataset

from daemon.dicom.dataset_scan import MAX_DEPTH, DataSetFacts, scan_data_set
from daemon.dicom.transfer_syntaxes import (
    DEFLATED,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
)
from daemon.errors import RefusedInstance

DEFLATED_EXPLICIT = "1.2.840.10008.1.2.1.99"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"
UID = "1.2.826.0.1.3680043.8.498.1"
FACTS = DataSetFacts(MAMMOGRAM, UID)
UNCOMPRESSED = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)

# Files that pydicom ships as examples of what is wrong, and the status that says so.
BROKEN = {
    "MR_truncated.dcm": 0xC000,
    "rtplan_truncated.dcm": 0xC000,
    "SC_rgb_jpeg.dcm": 0xC000,  # Implicit VR under a JPEG transfer syntax
    "nested_priv_SQ.dcm": 0xC000,  # tag (0001,0001)
    "UN_sequence.dcm": 0xA900,  # no SOP Class UID, like the three below
    "DICOMDIR-empty.dcm": 0xA900,
    "empty_charset_LEI.dcm": 0xA900,
    "no_meta_group_length.dcm": 0xA900,
    "priv_SQ.dcm": 0xA900,
}


def encode(dataset: Dataset, transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """As pydicom writes it."""
    stream = DicomBytesIO()
    stream.is_implicit_VR = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    stream.is_little_endian = transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN
    write_dataset(stream, dataset)
    written = stream.getvalue()
    if transfer_syntax_uid in DEFLATED:
        deflate = zlib.compressobj(wbits=-15)
        return deflate.compress(written) + deflate.flush()
    return written


def check(content: bytes, transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN) -> DataSetFacts:
    return scan_data_set(io.BytesIO(content), transfer_syntax_uid)


def refusal(content: bytes, transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN) -> RefusedInstance:
    with pytest.raises(RefusedInstance) as caught:
        check(content, transfer_syntax_uid)
    return caught.value


def header(uid: str | None = UID, sop_class: str | None = MAMMOGRAM) -> Dataset:
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of UIDs that are none
        if sop_class is not None:
            dataset.SOPClassUID = sop_class
        if uid is not None:
            dataset.SOPInstanceUID = uid
    dataset.PatientName = "Doe^Jane"
    return dataset


def nested(depth: int, undefined: bool) -> Dataset:
    """A content tree `depth` sequences deep, with a value before and after each sequence."""
    dataset = Dataset()
    dataset.ValueType = "TEXT"
    dataset.TextValue = "a finding"
    for _ in range(depth):
        parent = Dataset()
        parent.ValueType = "CONTAINER"
        parent.ContentSequence = [dataset, Dataset()]
        parent["ContentSequence"].is_undefined_length = undefined
        dataset.is_undefined_length_sequence_item = undefined
        parent.TextValue = "after"
        dataset = parent
    dataset.update(header())
    return dataset


@pytest.mark.parametrize("transfer_syntax_uid", [*UNCOMPRESSED, DEFLATED_EXPLICIT])
@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 12, MAX_DEPTH])
def test_nested_data_sets_are_walked(transfer_syntax_uid: str, undefined: bool, depth: int) -> None:
    assert check(encode(nested(depth, undefined), transfer_syntax_uid), transfer_syntax_uid) == FACTS


@pytest.mark.parametrize("transfer_syntax_uid", [*UNCOMPRESSED, DEFLATED_EXPLICIT])
def test_deeper_nesting_than_any_report_needs_is_refused(transfer_syntax_uid: str) -> None:
    error = refusal(encode(nested(MAX_DEPTH + 1, True), transfer_syntax_uid), transfer_syntax_uid)
    assert error.status == 0xC000
    assert "nested" in error.reason


def test_encapsulated_pixels_are_walked_also_inside_a_sequence() -> None:
    icon = Dataset()
    icon.add_new("PixelData", "OB", encapsulate([b"icon" * 8]))
    icon["PixelData"].is_undefined_length = True
    dataset = header()
    dataset.IconImageSequence = [icon]
    dataset.add_new("PixelData", "OB", encapsulate([b"one!" * 1000, b"two!" * 500]))
    dataset["PixelData"].is_undefined_length = True
    content = encode(dataset)
    assert check(content, JPEG_LOSSLESS) == FACTS
    cut = content[:-8]  # without its delimiter
    assert f"ends at byte {len(cut)}, in or after (7FE0,0010)" in refusal(cut, JPEG_LOSSLESS).reason


def test_unknown_vr_of_undefined_length_holds_implicit_vr() -> None:
    """PS3.5 6.2.2 note 1 and CP-246."""
    inner = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + encode(header(), IMPLICIT_VR_LITTLE_ENDIAN)
    inner += struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    content = encode(header()) + struct.pack("<HH2sHI", 0x0029, 0x1010, b"UN", 0, 0xFFFFFFFF) + inner
    assert check(content) == FACTS


def test_values_are_skipped_not_read(tmp_path: Path) -> None:
    """A 27 MB image costs some kilobytes."""
    dataset = header()
    for number in range(150):
        dataset.add_new((0x0019, 0x1000 + number), "LO", "x" * 32)
    dataset.add_new("PixelData", "OW", bytes(27_000_000))
    path = tmp_path / "image"
    path.write_bytes(encode(dataset))
    with path.open("rb", buffering=0) as raw:
        before = _bytes_read()
        assert scan_data_set(io.BufferedReader(raw, 4096), EXPLICIT_VR_LITTLE_ENDIAN) == FACTS
        assert _bytes_read() - before < 50_000


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def test_every_boundary_between_elements_and_no_other_place_is_an_end() -> None:
    """Cut at every byte: only a cut between top-level elements goes unseen, as it leaves a valid data set."""
    dataset = nested(2, True)
    dataset.Rows = 4
    dataset.add_new("PixelData", "OW", b"\1\2" * 16)
    for transfer_syntax_uid in UNCOMPRESSED:
        content = encode(dataset, transfer_syntax_uid)
        ends, after_uids = set(), 0
        parts = Dataset()
        for element in dataset:
            parts[element.tag] = element
            ends.add(len(encode(parts, transfer_syntax_uid)))
            after_uids = max(ends) if element.keyword == "SOPInstanceUID" else after_uids
        for cut in range(len(content) + 1):
            if cut in ends and cut >= after_uids:
                assert check(content[:cut], transfer_syntax_uid) == FACTS
            elif cut in ends:
                assert refusal(content[:cut], transfer_syntax_uid).status == 0xA900
            else:
                error = refusal(content[:cut], transfer_syntax_uid)
                assert error.status == 0xC000, (cut, error.reason)


def test_deflated_data_set_cut_damaged_or_with_more_behind_it() -> None:
    dataset = nested(3, True)
    dataset.add_new("PixelData", "OW", bytes(range(256)) * 1024)
    content = encode(dataset, DEFLATED_EXPLICIT)
    for cut in range(0, len(content), 7):
        assert refusal(content[:cut], DEFLATED_EXPLICIT).status in (0xC000, 0xA900)
    assert check(content + b"\0", DEFLATED_EXPLICIT) == FACTS  # padded to even length, PS3.5 A.5
    assert refusal(content + bytes(100), DEFLATED_EXPLICIT).status == 0xC000
    assert "not deflated" in refusal(b"\xff" * 100, DEFLATED_EXPLICIT).reason


def test_deflated_pixels_cost_no_memory() -> None:
    dataset = header()
    dataset.add_new("PixelData", "OW", bytes(32 << 20))
    content = encode(dataset, DEFLATED_EXPLICIT)
    del dataset
    tracemalloc.start()
    assert check(content, DEFLATED_EXPLICIT) == replace(FACTS, is_large=True)  # who reads it has to inflate it
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_deflate_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.dicom.forward_reader.MAX_INFLATED", 1 << 20)
    dataset = header()
    dataset.add_new("PixelData", "OW", bytes(2 << 20))
    assert "inflates to more than" in refusal(encode(dataset, DEFLATED_EXPLICIT), DEFLATED_EXPLICIT).reason


@pytest.mark.parametrize(
    ("dataset", "status"),
    [
        (header(uid=None), 0xA900),
        (header(uid=""), 0xA900),
        (header(sop_class=None), 0xA900),
        (header(uid="../../etc/passwd"), 0x0117),
        (header(uid="1." * 32 + "1"), 0x0117),
        (header(uid="1.2.3\\1.2.4"), 0x0117),
        (header(uid="1.2.é"), 0x0117),
        (header(sop_class="1..2"), 0x0117),
    ],
)
def test_uids_that_are_missing_or_none(dataset: Dataset, status: int) -> None:
    error = refusal(encode(dataset))
    assert error.status == status
    assert "Doe" not in error.reason


@pytest.mark.parametrize(
    ("content", "transfer_syntax_uid", "says"),
    [
        (b"", EXPLICIT_VR_LITTLE_ENDIAN, "ends at byte 0"),
        (b"", DEFLATED_EXPLICIT, "ends at byte"),
        (b"\0" * 512, IMPLICIT_VR_LITTLE_ENDIAN, "(0000,0000) at byte 0"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", EXPLICIT_VR_LITTLE_ENDIAN, "value representation"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", IMPLICIT_VR_LITTLE_ENDIAN, "ends at byte"),
        (encode(header(), IMPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN, "value representation"),
        (encode(header(), EXPLICIT_VR_BIG_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN, "ends at byte 88"),
        (encode(header()) + encode(header()), EXPLICIT_VR_LITTLE_ENDIAN, "comes twice"),
        (encode(header()) + struct.pack("<HHI", 0xFFFE, 0xE00D, 0), EXPLICIT_VR_LITTLE_ENDIAN, "(FFFE,E00D)"),
        (encode(header()) + bytes(128) + b"DICM", EXPLICIT_VR_LITTLE_ENDIAN, "value representation"),
    ],
)
def test_what_is_no_data_set_is_refused_with_the_place(content: bytes, transfer_syntax_uid: str, says: str) -> None:
    error = refusal(content, transfer_syntax_uid)
    assert error.status == 0xC000
    assert says in error.reason


def test_item_that_runs_over_the_end_of_its_sequence_is_refused() -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 8) + bytes(8)
    sequence = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 12) + item
    assert refusal(encode(header()) + sequence + encode(Dataset())).status == 0xC000


def test_files_of_many_writers() -> None:
    """pydicom's test files: vendors, codecs, waveforms, RT, private sequences, one with a gzip trailer."""
    passed = 0
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm")):
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_preamble(file, False)
                transfer_syntax_uid = str(_read_file_meta_info(file).TransferSyntaxUID)
            except (pydicom.errors.InvalidDicomError, AttributeError):
                continue  # no Part 10 file
            if path.name in BROKEN:
                with pytest.raises(RefusedInstance) as caught:
                    scan_data_set(file, transfer_syntax_uid)
                assert caught.value.status == BROKEN[path.name]
                continue
            facts = scan_data_set(file, transfer_syntax_uid)
            read = pydicom.dcmread(path, stop_before_pixels=True)
            assert (facts.sop_class_uid, facts.sop_instance_uid) == (read.SOPClassUID, read.SOPInstanceUID), path
            passed += 1
    assert passed > 50


SOUND = {uid: encode(nested(3, uid == EXPLICIT_VR_LITTLE_ENDIAN), uid) for uid in (*UNCOMPRESSED, DEFLATED_EXPLICIT)}


@given(st.binary(max_size=2000), st.sampled_from(sorted(TRANSFER_SYNTAXES)))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_never_anything_but_refused(content: bytes, transfer_syntax_uid: str) -> None:
    assert refusal(content, transfer_syntax_uid).status in (0xC000, 0xA900, 0x0117)


@given(
    st.sampled_from(sorted(SOUND)),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=8)), min_size=1, max_size=8),
    st.sampled_from(["overwrite", "insert", "remove"]),
)
@settings(max_examples=1000, deadline=None)
def test_damaged_data_sets_give_facts_or_a_refusal(
    transfer_syntax_uid: str, damages: list[tuple[int, bytes]], how: str
) -> None:
    content = bytearray(SOUND[transfer_syntax_uid])
    for place, damage in damages:
        place %= len(content) or 1
        end = place if how == "insert" else place + len(damage)
        content[place:end] = b"" if how == "remove" else damage
    try:
        facts = check(bytes(content), transfer_syntax_uid)
    except RefusedInstance as error:
        assert error.reason.isascii()
    else:
        assert all(
            len(uid) <= 64 and set(uid) <= set("0123456789.") for uid in (facts.sop_class_uid, facts.sop_instance_uid)
        )
