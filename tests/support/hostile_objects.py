"""Hostile and broken objects: a corpus of named ones, and seeded damage to real ones, in bytes and in
elements.
"""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.support import lesion_objects as b

ROWS, COLUMNS = 64, 48
SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30), (10, 10)]
LARGE_TAG_PIXELS = 0x7FE0_0010


@dataclass(frozen=True)
class Object:
    """An encoded data set; `image_uid` is the image that a lesion object is on, itself for an image."""

    name: str
    content: bytes
    transfer_syntax: str = ExplicitVRLittleEndian


def encode(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """As pydicom writes it, whatever the values are."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, transfer_syntax == ImplicitVRLittleEndian
    plain = Dataset()
    plain.update({element.tag: element for element in dataset if element.tag.group != 2})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(stream, plain)
    return stream.getvalue()


@cache
def image() -> Dataset:
    """The mammogram that all lesion objects here are on."""
    return b.mammogram(ROWS, COLUMNS, sop_instance_uid="1.2.826.0.1.3680043.8.498.7", seed=3)


@cache
def tomosynthesis() -> Dataset:
    return b.mammogram(ROWS, COLUMNS, frames=3, sop_instance_uid="1.2.826.0.1.3680043.8.498.8", seed=4)


def _mask(frames: int = 1) -> np.ndarray:
    mask = np.zeros((frames, ROWS, COLUMNS), np.uint8)
    mask[:, 10:30, 10:30] = 1
    return mask if frames > 1 else mask[0]


@cache
def real() -> dict[str, Dataset]:
    """Sound objects, one of each kind that is read."""
    square = b.MarkedRegion("POLYLINE", SQUARE)
    center = b.single_image_finding(b.MASS, (1, 1, 1), center=(20, 20), outline=SQUARE)
    found: dict[str, Dataset] = {
        "image": image(),
        "tomosynthesis": tomosynthesis(),
        "SEG": b.segmentation_of(image(), _mask()),
        "SEG fractional": b.segmentation_of(image(), _mask(), "FRACTIONAL"),
        "SEG label map": b.segmentation_of(image(), _mask(), "LABELMAP"),
        "SEG of three frames": b.segmentation_of(tomosynthesis(), _mask(3)),
        "SEG RLE": b.segmentation_of(image(), _mask(), "FRACTIONAL", transfer_syntax_uid=RLELossless),
        "SR measurements": b.measurement_report_of(image(), [square, b.MarkedRegion("CIRCLE", [(20, 20), (25, 20)])]),
        "SR by hand": b.report_by_hand(
            [image()], [b.scoord("ELLIPSE", [(5, 9), (30, 9), (17, 2), (17, 20)], [b.image_item(image())])]
        ),
        "SR CAD": b.cad_report_of([image()], [center]),
    }  # fmt: skip
    for name, syntax, plugin in (
        ("image RLE", RLELossless, "pydicom"),
        ("image JPEG-LS", JPEGLSLossless, "pyjpegls"),
        ("image JPEG 2000", JPEG2000Lossless, "pylibjpeg"),
    ):
        found[name] = copy.deepcopy(image())
        found[name].compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    if lossless := _by_dcmtk(image()):
        found["image JPEG lossless"] = lossless
    return found


def _by_dcmtk(dataset: Dataset) -> Dataset | None:
    """JPEG lossless, which pydicom cannot write; None where DCMTK is not installed."""
    if shutil.which("dcmcjpeg") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        raw, compressed = Path(folder) / "raw.dcm", Path(folder) / "compressed.dcm"
        dataset.save_as(raw, enforce_file_format=True)
        subprocess.run(["dcmcjpeg", "+e1", raw, compressed], check=True, timeout=60, capture_output=True)
        return dcmread(compressed)


@cache
def encoded() -> list[Object]:
    """The sound objects as they are sent; uncompressed ones in Implicit VR as well."""
    found = []
    for name, dataset in real().items():
        syntax = dataset.file_meta.TransferSyntaxUID
        found.append(Object(name, encode(dataset, syntax), syntax))
        if not syntax.is_encapsulated:
            found.append(Object(f"{name} implicit", encode(dataset, ImplicitVRLittleEndian), ImplicitVRLittleEndian))
    return found


# --- damage -----------------------------------------------------------------------------------------------

_LENGTHS = [0, 1, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


def damaged(chance: random.Random) -> Object:
    """A sound object with one place of its bytes changed, or up to six."""
    source = chance.choice(encoded())
    content = bytearray(source.content)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):  # whoever hits once gets further
        # Most of the bytes are pixels, most of the meaning is before them.
        most = len(content) if chance.random() < 0.3 else min(len(content), 4000)
        at = chance.randrange(max(most, 1))
        how = chance.randrange(7)
        if how == 0:
            content[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            content[at : at + 4] = struct.pack("<I", chance.choice(_LENGTHS))
        elif how == 2:
            content[at : at + 2] = struct.pack("<H", chance.choice(_LENGTHS) & 0xFFFF)
        elif how == 3:
            del content[at : at + chance.choice([1, 2, 8, 100])]
        elif how == 4:
            content[at:at] = chance.randbytes(chance.choice([1, 2, 8, 100]))
        elif how == 5:
            content[at:at] = content[at : at + chance.randrange(1, 200)]
        else:
            content[at : at + 2] = chance.choice([b"SQ", b"UN", b"OB", b"FL", b"\xfe\xff", b"ZZ", b"\0\0"])
    if chance.random() < 0.1:
        del content[chance.randrange(len(content) or 1) :]
    return Object(f"{source.name} damaged", bytes(content), source.transfer_syntax)


_VALUES: dict[str, list[Any]] = {
    "US": [0, 1, 65535, [1, 2, 3]],
    "UL": [0, 4294967295],
    "SS": [-32768, 32767],
    "SL": [-2147483648],
    "FL": [float("nan"), float("inf"), -1e38, 0.0, [float("nan")] * 6, [0.5] * 1001],
    "FD": [float("nan"), float("inf"), -1e308, [1.0, 2.0]],
    "IS": ["0", "-1", "99999999999", "1.5", "x", "1\\2\\3", ""],
    "DS": ["nan", "inf", "-1e400", "0", "x", "1\\2\\3", "", "0.0000000000001"],
    "UI": ["", "1.2.3", "../../etc/passwd", "9" * 64, "1.2\\1.3"],
    "CS": ["", "CONTAINER", "SCOORD", "IMAGE", "POLYLINE", "BINARY", "LABELMAP", "MONOCHROME1", "RGB", "ISO_IR 999"],
}


def altered(chance: random.Random) -> Object:
    """A sound object with one to four of its elements, at any depth, given other values or other places."""
    name = chance.choice(list(real()))
    dataset = copy.deepcopy(real()[name])
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated and chance.random() < 0.3:
        syntax = ImplicitVRLittleEndian
    for _ in range(chance.randint(1, 4)):
        holders = [dataset, *_datasets_below(dataset)]
        holder = chance.choice(holders)
        elements = [element for element in holder if element.tag.group != 2]
        if not elements:
            continue
        _alter(chance, holder, chance.choice(elements), holders)
    try:
        return Object(f"{name} altered", encode(dataset, syntax), syntax)
    except Exception:  # a value that pydicom cannot write at all
        return altered(chance)


def _alter(chance: random.Random, holder: Dataset, element: DataElement, holders: list[Dataset]) -> None:
    how = chance.randrange(5)
    if how == 0:
        del holder[element.tag]
    elif element.VR == "SQ":
        items = list(element.value)
        if how == 1 and items:
            items = items * chance.choice([2, 50])
        elif how == 2:
            items = []
        else:
            items.append(copy.deepcopy(chance.choice(holders)))
        element.value = items[:500]
    elif how == 1 and element.tag != LARGE_TAG_PIXELS:
        with contextlib.suppress(ValueError, TypeError):  # pydicom reads some at once
            holder.add_new(element.tag, "UN", chance.randbytes(chance.choice([0, 1, 4, 40])))
    elif element.tag == LARGE_TAG_PIXELS:
        value = bytes(element.value)
        cut = chance.randrange(len(value) + 1)
        element.value = chance.choice([b"", value[:cut], value + value, chance.randbytes(len(value))])
    else:
        value = chance.choice(_VALUES.get(element.VR, ["", "x" * 70, "\\\\\\", "é\x00\x1b$B"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                element.value = value
            except Exception:  # pydicom does not take it; others write such things
                text = str(value).encode("latin-1", "replace")
                text += b" " * (len(text) % 2)
                holder[element.tag] = RawDataElement(element.tag, element.VR, len(text), text, 0, False, True)


def _datasets_below(dataset: Dataset) -> list[Dataset]:
    found = []
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += [item, *_datasets_below(item)]
    return found


# --- the corpus -------------------------------------------------------------------------------------------

_REGION = ("1.2.840.10008.5.1.4.1.1.88.22", "1.2.826.0.1.3680043.8.498.9")


def _image_with(**attributes: Any) -> Object:
    dataset = copy.deepcopy(image())
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return Object("", encode(dataset))


def _report(*children: Dataset, syntax: str = ExplicitVRLittleEndian) -> Object:
    return Object("", encode(b.report_by_hand([image()], children), syntax), syntax)


def _shape(graphic_type: str, points: Any, frame: int | None = None) -> Dataset:
    return b.scoord(graphic_type, points, [b.image_item(image(), frame=frame)])


def _compressed_with(syntax: str, frame: bytes, **attributes: Any) -> Object:
    dataset = copy.deepcopy(image())
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return Object("", encode(dataset, syntax), syntax)


def _appended(*parts: bytes) -> Object:
    """The image with elements after its pixels."""
    return Object("", encode(image()) + b"".join(parts))


def _sequence(depth: int, count: int = 1) -> bytes:
    """(FFFC,..) is after everything; here a private sequence of undefined length, nested, with empty
    items.
    """
    opened = struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closed = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    empty = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * (count - 1)
    return opened * depth + (closed[:8] + empty + closed[8:]) + closed * (depth - 1)


def _deep_report(depth: int) -> Dataset:
    child = _shape("POLYLINE", SQUARE)
    for _ in range(depth):
        child = b.container(b.IMAGE_REGION, [child])
    return child


def _cycle() -> Object:
    """Findings that are inferred from each other by reference, and one from itself."""
    first, second = (
        b.single_image_finding(
            b.MASS, (1, 1, 1), outline=SQUARE, parts=[b.reference_item((1, 2, 1, place), "INFERRED FROM")]
        )
        for place in (3, 2)
    )
    itself = b.single_image_finding(b.MASS, (1, 2, 1, 4), parts=[b.reference_item((1, 2, 1, 4), "INFERRED FROM")])
    return Object("", encode(b.cad_report_of([image()], [first, second, itself])))


def _seg_with(change: Callable[[Dataset], None], base: str = "SEG") -> Object:
    dataset = copy.deepcopy(real()[base])
    change(dataset)
    return Object("", encode(dataset))


def _set(**attributes: Any) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    return change


def _frame_out_of_range(dataset: Dataset) -> None:
    group = dataset.PerFrameFunctionalGroupsSequence[0]
    group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 99


def _many_frames(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence) * 10_000
    dataset.NumberOfFrames = 10_000


def _many_segments(dataset: Dataset) -> None:
    numbered = []
    for number in range(1, 2001):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number, "x"
        numbered.append(item)
    dataset.SegmentSequence = numbered


def _noise(dataset: Dataset) -> None:
    """A chessboard of single pixels two apart: as many parts as can be."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[::2, ::2] = 1
    dataset.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()


def _jpeg_2000_of(width: int, height: int) -> bytes:
    """The JPEG 2000 image's code stream with another size in its SIZ marker segment."""
    from pydicom.encaps import get_frame

    frame = bytearray(get_frame(real()["image JPEG 2000"].PixelData, 0, number_of_frames=1))
    at = frame.index(b"\xff\x4f\xff\x51")
    frame[at + 8 : at + 16] = struct.pack(">II", width, height)
    frame[at + 24 : at + 32] = struct.pack(">II", width, height)  # one tile of all
    return bytes(frame)


_PATIENT = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 8)

# Too slow for every day: `make soak` has them.
HEAVY = frozenset({"21,000 regions"})

# name -> (the object, what becomes of it: a regular expression for what `tests.support.fate` says)
CORPUS: dict[str, tuple[Callable[[], Object], str]] = {
    "sequences 10,000 deep": (lambda: _appended(_sequence(10_000)), r"C000 .*nested more than 64 deep"),
    "sequences 10,000 deep without end": (lambda: _appended(_sequence(10_000)[:120_000]), r"C000 .*nested more than 64"),
    "half a million empty items": (lambda: _appended(_sequence(1, 500_001)), r"C000 .*more than 500000 elements"),
    "a value of 4 GiB announced": (
        lambda: _appended(struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"OB", 0, 0xFFFFFFFE)), r"C000 .*it was cut"
    ),
    "a value of undefined length that may not": (
        lambda: _appended(struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"UT", 0, 0xFFFFFFFF)), r"C000 .*UT must have a length"
    ),
    "a VR that does not exist": (
        lambda: _appended(struct.pack("<HH2sH", 0x7FE1, 0x1001, b"ZZ", 2) + b"ab"), r"C000 .*does not exist"
    ),
    "a character set that does not exist": (lambda: _image_with(SpecificCharacterSet="ISO_IR 999"), "cut"),
    "escape sequences without end": (
        lambda: _image_with(SpecificCharacterSet=["", "ISO 2022 IR 87"], StudyDescription="\x1b$B" * 20), "cut"
    ),
    "report 70 deep": (lambda: _report(_deep_report(70)), r"C000 .*nested more than 64 deep"),
    "report 50 deep": (lambda: _report(_deep_report(50)), "1 lesions"),
    "report of 10,000 nested items": (
        lambda: _report(*[b.container(b.IMAGE_REGION, [_shape("POINT", [(20, 20)])]) for _ in range(3333)]), "1 lesions"
    ),
    "2,000 regions, each another": (
        lambda: _report(*[_shape("POINT", [(number % 40 + number / 1e5, 20)]) for number in range(2000)]),
        r"quarantined: it marks more than 250 lesions",
    ),
    "21,000 regions": (
        lambda: _report(*[_shape("POINT", [(number % 40 + number / 1e5, 20)]) for number in range(21_000)]),
        r"quarantined: the report draws 21000 regions; at most 20000",
    ),
    "a million points": (
        lambda: _report(_shape("POLYLINE", [(number % 40, 20) for number in range(1_000_000)]), syntax=ImplicitVRLittleEndian),
        r"quarantined: content item 1.1 has 1000000 points; at most 100000",
    ),
    "coordinates that are not numbers": (
        lambda: _report(_shape("POLYLINE", [(float("nan"), 1), (2, 2), (3, 3)])), r"quarantined: .*not finite"
    ),
    "infinite coordinates": (lambda: _report(_shape("POINT", [(float("inf"), 1)])), r"quarantined: .*not finite"),
    "a circle of the size of the sky": (lambda: _report(_shape("CIRCLE", [(20, 20), (3e38, 3e38)])), "0 lesions"),
    "an ellipse beyond numbers": (
        lambda: _report(_shape("ELLIPSE", [(-3e38, 20), (3e38, 20), (20, -3e38), (20, 3e38)])), "0 lesions|quarantined: "
    ),
    "frame 0 of an image": (lambda: _report(_shape("POINT", [(20, 20)], frame=0)), r"quarantined: .*frame 0 is named"),
    "frame 4,000,000 of an image": (
        lambda: _report(_shape("POINT", [(20, 20)], frame=4_000_000)), r"quarantined: .*frame 4000000 is named"
    ),
    "frame of an image that has fewer, in a SEG": (lambda: _seg_with(_frame_out_of_range), r"quarantined: .*frame 99 is named"),
    "findings inferred from each other": (_cycle, "2 lesions|1 lesions"),
    "3,000 findings": (
        lambda: Object("", encode(b.cad_report_of(
            [image()], [b.single_image_finding(b.MASS, (1, 1, 1), center=(20, 20)) for _ in range(3000)]))),
        r"quarantined: the report has 3000 single image findings",
    ),
    "SEG of 65,535 x 65,535": (lambda: _seg_with(_set(Rows=65535, Columns=65535)), r"quarantined: .*cannot be: at most"),
    "SEG of 10,000 frames and pixels for one": (lambda: _seg_with(_many_frames), r"1 lesions"),
    "SEG of 2,000 segments": (lambda: _seg_with(_many_segments), r"quarantined: .*2000 segments; at most 1000"),
    "SEG of noise": (lambda: _seg_with(_noise), r"quarantined: .*separate parts on one frame"),
    "SEG without pixels": (lambda: _seg_with(lambda dataset: dataset.__delitem__("PixelData")), r"quarantined: .*no Pixel Data"),
    "SEG cut within its pixels": (lambda: _seg_with(_set(PixelData=b"\1" * 10)), r"quarantined: .*end before frame 1"),
    "SEG that names an infinity of frames": (
        lambda: _seg_with(lambda dataset: dataset.add_new("NumberOfFrames", "IS", "2147483647")), "1 lesions|quarantined"
    ),
    "image of 65,535 x 65,535": (lambda: _image_with(Rows=65535, Columns=65535), r"quarantined: .*cannot be"),
    "image with too few pixels": (lambda: _image_with(PixelData=b"\1\2" * 100), r"quarantined: .*holds 200 bytes"),
    "image with too many pixels": (lambda: _image_with(PixelData=b"\1\2" * 100_000), r"quarantined: .*holds 200000 bytes"),
    "image of 10,000 frames with pixels for one": (lambda: _image_with(NumberOfFrames="10000"), r"quarantined: .*asks for"),
    "10,000 compressed frames announced": (
        lambda: _compressed_with(RLELossless, b"\1" + bytes(63), NumberOfFrames="10000"), r"quarantined: .*cannot be decoded"
    ),
    "image without rows": (lambda: _image_with(Rows=None), r"quarantined: Rows is"),
    "JPEG 2000 that announces gigapixels": (
        lambda: _compressed_with(JPEG2000Lossless, _jpeg_2000_of(60_000, 60_000)), r"quarantined: .*announces \(60000, 60000\)"
    ),
    "JPEG 2000 and header that announce gigapixels": (
        lambda: _compressed_with(JPEG2000Lossless, _jpeg_2000_of(65_535, 65_535), Rows=65_535, Columns=65_535),
        r"quarantined: .*cannot be",
    ),
    "JPEG 2000 of 16 million pixels in 2 kB": (
        lambda: _compressed_with(JPEG2000Lossless, _jpeg_2000_of(4_000, 4_000), Rows=4_000, Columns=4_000),
        r"quarantined|cut",
    ),
    "JPEG 2000 of random bytes": (
        lambda: _compressed_with(JPEG2000Lossless, random.Random(1).randbytes(5000)), r"quarantined: .*cannot be decoded"
    ),
    "JPEG-LS of random bytes": (
        lambda: _compressed_with(JPEGLSLossless, b"\xff\xd8" + random.Random(2).randbytes(5000)), r"quarantined: "
    ),
    "RLE segments beyond the frame": (
        lambda: _compressed_with(RLELossless, struct.pack("<16I", 15, *[0xFFFFFFF0] * 15) + bytes(100)), r"quarantined: "
    ),
    "RLE that unrolls to more than the frame": (
        lambda: _compressed_with(RLELossless, struct.pack("<16I", 2, 64, 64 + 2000, *[0] * 13) + b"\x81\xff" * 2000),
        "quarantined: |cut",
    ),
    "rescale slope of nothing": (lambda: _image_with(RescaleSlope="0"), r"quarantined: Rescale Slope is 0"),
    "window width that is no number": (lambda: _image_with(WindowWidth="nan"), r"quarantined: WindowWidth"),
}  # fmt: skip
