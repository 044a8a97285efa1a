"""One report of every kind that the room can write, by name: what the peers must accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from daemon.lesion import LeftOut
from tests.daemon.reports import builders as b

YAMADA = "Yamada^Tarou=山田^太郎=やまだ^たろう"  # PS3.5 H.3.1


def one(graphic_type: str = "POLYLINE") -> Dataset:
    image = b.mammogram()
    marked = b.lesion(image, graphic_type, b.REGIONS[graphic_type], tracking_id="Finding A", finding=b.MASS)
    return b.report([b.result(marked)], image)


def untrained_on_assumed_spacing() -> Dataset:
    image = b.mammogram(ImagerPixelSpacing=None)
    result = b.result(b.lesion(image), 0.2, spacing_assumed=True, mm_per_pixel=0.05, padded=0.25)
    return b.report([result], image, algorithm=b.UNTRAINED)


def many() -> Dataset:
    image = b.mammogram()
    shifted = [[(column + 10 * n, row + 20 * n) for column, row in b.SQUARE] for n in range(50)]
    return b.report([b.result(b.lesion(image, points=points), n / 49) for n, points in enumerate(shifted)], image)


def frames() -> Dataset:
    image = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    return b.report([b.result(b.lesion(image, frame=17)), b.result(b.lesion(image, frame=60))], image)


def several_images() -> Dataset:
    images = [b.mammogram("rcc"), b.mammogram("lmlo", ImageLaterality="L", ViewPosition="MLO")]
    prior = b.mammogram("prior", StudyInstanceUID=b.uid("prior study"), StudyDate="20220301")
    return b.report([b.result(b.lesion(image)) for image in (*images, prior)], *images, prior)


def from_sr() -> Dataset:
    image = b.mammogram()
    return b.report([b.result(b.lesion(image))], image, of=b.source(b.COMPREHENSIVE_SR))


def bare() -> Dataset:
    image = b.bare_mammogram()
    return b.report([b.result(b.lesion(image))], image)


def bare_with(**changes: object) -> Dataset:
    image = b.bare_mammogram(**changes)
    return b.report([b.result(b.lesion(image))], image)


def named(charset: str | list[str] | None, name: str) -> Dataset:
    image = b.mammogram(SpecificCharacterSet=charset, PatientName=name)
    return b.report([b.result(b.lesion(image, tracking_id="Läsion 病変 1"))], image)


def replacing() -> Dataset:
    image = b.mammogram()
    old = (b.COMPREHENSIVE_3D_SR, b.uid("old"), b.uid("old series"), b.uid("study"))
    return b.report([b.result(b.lesion(image))], image, predecessor=old)


def with_left_out() -> Dataset:
    image = b.mammogram()
    left_out = [LeftOut("segment 2", "its code SCT:76752008 is not a lesion")]
    return b.report([b.result(b.lesion(image))], image, left_out=left_out)


def long_words() -> Dataset:
    image = b.mammogram(PatientName="N" * 31 + "^" + "G" * 32, PatientID="I" * 64)
    finding = replace(b.MASS, meaning="a meaning with a \\ and " + "long " * 20)
    algorithm = replace(b.TRAINED, name="n" * 80, version="v" * 80, intended_use="research " * 300)
    marked = b.lesion(image, finding=finding, tracking_id="T" * 300 + "\n2")
    return b.report([b.result(marked)], image, algorithm=algorithm)


CASES: dict[str, Callable[[], Dataset]] = {
    **{graphic_type.lower(): lambda kind=graphic_type: one(kind) for graphic_type in b.REGIONS},  # type: ignore[misc]
    "untrained": untrained_on_assumed_spacing,
    "many": many,
    "frames": frames,
    "several images": several_images,
    "from SR": from_sr,
    "bare": bare,
    "empty orientation": lambda: bare_with(PatientOrientation="", Modality="MG"),
    "view as orientation": lambda: bare_with(PatientOrientation="CC", Modality="MG", Laterality="L"),
    "no sex": lambda: bare_with(PatientSex="", PatientBirthDate="", PatientID="P-1"),
    "UTF-8": lambda: named("ISO_IR 192", YAMADA),
    "Japanese": lambda: named(["", "ISO 2022 IR 87"], YAMADA),
    "Latin 1": lambda: named("ISO_IR 100", "Müller^Jörg"),
    "ASCII": lambda: named(None, "Mueller^Joerg"),
    "replacing": replacing,
    "left out": with_left_out,
    "long words": long_words,
}


@cache
def file_of(case: str) -> bytes:
    """The report of this case as a file, made once."""
    return b.saved(CASES[case]())


def read(case: str) -> Dataset:
    """The report of this case, read from its file."""
    return dcmread(BytesIO(file_of(case)))
