"""Reading a frame: every encoding gives back the very values that were encoded, and damage is named."""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from model.errors import ImageError
from model.image import open_image, read_frame
from tests.support.bundles import image, noise

DEPTHS = [(8, False), (10, False), (12, False), (14, True), (16, False), (16, True)]


@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_native_values_come_back(syntax: str, bits: int, signed: bool) -> None:
    stored = noise((7, 5), bits, signed)
    dataset = image(stored, bits)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes() + b"\0" * (stored.nbytes % 2)
    dataset.file_meta.TransferSyntaxUID = syntax
    _assert_reads(_through_file(dataset), stored)


@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compressed_values_come_back(syntax: str, bits: int, signed: bool) -> None:
    stored = noise((70, 67), bits, signed)
    dataset = image(stored, bits)
    dataset.compress(syntax, generate_instance_uid=False)
    _assert_reads(_through_file(dataset), stored)


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="dcmcjpeg (DCMTK) is not installed")
@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize("process", ["+e1", "+el"], ids=["first order", "process 14"])
def test_jpeg_lossless_of_dcmtk_comes_back(process: str, bits: int, signed: bool, tmp_path: Path) -> None:
    stored = noise((70, 67), bits, signed)
    image(stored, bits).save_as(tmp_path / "raw.dcm", enforce_file_format=True)
    subprocess.run(
        ["dcmcjpeg", process, tmp_path / "raw.dcm", tmp_path / "jpeg.dcm"], check=True, timeout=60, capture_output=True
    )
    _assert_reads(dcmread(tmp_path / "jpeg.dcm"), stored)


def test_bits_above_those_stored_are_ignored() -> None:
    # PS3.5 8.1.1: what stands above Bits Stored, such as an old overlay, is no part of the value.
    stored = noise((4, 6), 12)
    dataset = image(stored | 0xA000, 12)
    np.testing.assert_array_equal(read_frame(dataset).stored, stored)


def test_frames_count_from_one() -> None:
    stored = noise((3, 5, 4), 12)
    dataset = image(stored)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(read_frame(dataset, number).stored, stored[number - 1])
    dataset.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_frame(dataset, 3).stored, stored[2])
    for number in (0, 4, -1):
        with pytest.raises(ImageError, match=f"no frame {number}: the image has 3"):
            read_frame(dataset, number)


def test_functional_groups_speak_for_their_frame() -> None:
    dataset = image(noise((2, 4, 4)), WindowCenter=1, WindowWidth=2)
    shared, first, second, pixels, window = (Dataset() for _ in range(5))
    pixels.PixelSpacing = [0.1, 0.2]
    shared.PixelMeasuresSequence = Sequence([pixels])
    window.WindowCenter, window.WindowWidth = 100, 50
    second.FrameVOILUTSequence = Sequence([window])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([first, second])
    assert read_frame(dataset, 1).header.WindowCenter == 1
    assert read_frame(dataset, 2).header.WindowCenter == 100
    assert read_frame(dataset, 2).header.PixelSpacing == [0.1, 0.2]


def test_the_header_identifies_nobody() -> None:
    dataset = image(noise((4, 4)), PatientName="Doe^Jane", PatientID="1", AccessionNumber="2", StudyDate="20200101")
    assert not any(word in str(read_frame(dataset).header) for word in ("Doe", "Patient", "Accession", "Date"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Rows": 0}, "Rows x Columns"),
        ({"Rows": 65535, "Columns": 65535}, "Rows x Columns"),
        ({"Rows": None}, "Rows is None"),
        ({"NumberOfFrames": -1}, "frames"),
        ({"Rows": 5}, "holds 32 bytes, .* asks for 40"),
        ({"Rows": 3}, "holds 32 bytes, .* asks for 24"),
        ({"SamplesPerPixel": 3}, "3 sample"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "'PALETTE COLOR'"),
        ({"PhotometricInterpretation": None}, "None"),
        ({"BitsAllocated": 32}, "Bits Allocated 32"),
        ({"BitsStored": 17}, "Bits Stored 17"),
        ({"HighBit": 15}, "High Bit 15"),
        ({"PixelRepresentation": 2}, "Pixel Representation 2"),
    ],
)
def test_a_header_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    dataset = image(noise((4, 4)))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    with pytest.raises(ImageError, match=message):
        read_frame(dataset)


def test_no_pixels_and_no_syntax_are_refused() -> None:
    dataset = image(noise((4, 4)))
    del dataset.PixelData
    with pytest.raises(ImageError, match="no Pixel Data"):
        read_frame(dataset)
    dataset = image(noise((4, 4)))
    del dataset.file_meta
    with pytest.raises(ImageError, match="no Transfer Syntax"):
        read_frame(dataset)


def test_syntaxes_without_decoder_are_refused_by_name() -> None:
    dataset = image(noise((4, 4)))
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    with pytest.raises(ImageError, match="JPEG Extended with 12 bits has no decoder"):
        read_frame(dataset)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    with pytest.raises(ImageError, match=r"MPEG2 .* cannot be read"):
        read_frame(dataset)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_damaged_code_stream_is_refused(syntax: str) -> None:
    dataset = image(noise((70, 67)))
    dataset.compress(syntax, generate_instance_uid=False)
    whole = dataset.PixelData
    dataset.PixelData = whole[:20] + b"\xff" * 40 + whole[60:]
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_frame(dataset)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda uid: uid.name)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True), (16, True)])
def test_uncompressed_pixels_stay_in_the_file(bits: int, signed: bool, syntax: str, tmp_path: Path) -> None:
    """Only what is looked at is read: of the second of three frames, and not of the third."""
    stored = noise((3, 201, 183), bits, signed)
    dataset = image(stored, bits)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    opened = open_image(tmp_path / "image.dcm")
    for number in (1, 2, 3):
        frame = read_frame(opened, number)
        assert isinstance(frame.stored, np.memmap)
        np.testing.assert_array_equal(frame.stored, stored[number - 1])
        assert frame.stored.dtype.newbyteorder("=") == stored.dtype
    assert [element.value for element in opened.values() if element.tag == 0x7FE00010] == [None]
    with (tmp_path / "image.dcm").open("r+b") as file:
        file.truncate((tmp_path / "image.dcm").stat().st_size - 1000)
    with pytest.raises(ImageError, match=r"holds \d+ bytes, .* asks for"):
        read_frame(open_image(tmp_path / "image.dcm"))


@pytest.mark.parametrize(
    "syntax",
    [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
    ids=lambda uid: uid.name,
)
def test_what_the_file_has_in_another_form_is_read_all_the_same(syntax: str, tmp_path: Path) -> None:
    stored = noise((2, 301, 283))
    dataset = image(stored)
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = stored.astype(">u2").tobytes()
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    for number in (1, 2):
        frame = read_frame(open_image(tmp_path / "image.dcm"), number)
        np.testing.assert_array_equal(frame.stored, stored[number - 1])


def _through_file(dataset: Dataset) -> Dataset:
    """Written and read again, as it comes from the spool."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return dcmread(file)


def _assert_reads(dataset: Dataset, stored: np.ndarray) -> None:
    frame = read_frame(dataset)
    assert frame.stored.dtype.kind in "iu"
    np.testing.assert_array_equal(frame.stored, stored)
