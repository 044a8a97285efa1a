"""One report of every kind that the room can write, by name: what the peers must accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from daemon.lesions.lesion import LeftOut
from daemon.reports.case import Case, Edition, Result
from daemon.reports.no_result import build as build_without_result
from tests.support import report_objects as b


@dataclass(frozen=True)
class Given:
    """What a report is made from; every kind takes the same."""

    results: list[Result]
    images: tuple[Dataset, ...]
    more: dict[str, Any]

    def report(self, kind: str) -> Dataset:
        """The one document of a kind that makes one."""
        (made,) = self.objects(kind)
        return made

    def objects(self, kind: str) -> list[Dataset]:
        return b.reports(kind, self.results, *self.images, **self.more)


def given(results: list[Result], *images: Dataset, **more: Any) -> Given:
    return Given(results, images, more)


YAMADA = "Yamada^Tarou=山田^太郎=やまだ^たろう"  # PS3.5 H.3.1


def one(graphic_type: str = "POLYLINE") -> Given:
    image = b.mammogram()
    marked = b.lesion(image, graphic_type, b.REGIONS[graphic_type], tracking_id="Finding A", finding=b.MASS)
    return given([b.result(marked)], image)


def untrained_on_assumed_spacing() -> Given:
    image = b.mammogram(ImagerPixelSpacing=None)
    result = b.result(b.lesion(image), 0.2, spacing_assumed=True, mm_per_pixel=0.05, padded=0.25)
    return given([result], image, algorithm=b.UNTRAINED)


def many() -> Given:
    image = b.mammogram()
    shifted = [[(column + 10 * n, row + 20 * n) for column, row in b.SQUARE] for n in range(50)]
    return given([b.result(b.lesion(image, points=points), n / 49) for n, points in enumerate(shifted)], image)


def frames() -> Given:
    image = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    return given([b.result(b.lesion(image, frame=17)), b.result(b.lesion(image, frame=60))], image)


def several_images() -> Given:
    images = [b.mammogram("rcc"), b.mammogram("lmlo", ImageLaterality="L", ViewPosition="MLO")]
    prior = b.mammogram("prior", StudyInstanceUID=b.uid("prior study"), StudyDate="20220301")
    return given([b.result(b.lesion(image)) for image in (*images, prior)], *images, prior)


def from_sr() -> Given:
    image = b.mammogram()
    return given([b.result(b.lesion(image))], image, of=b.source(b.COMPREHENSIVE_SR))


def bare() -> Given:
    image = b.bare_mammogram()
    return given([b.result(b.lesion(image))], image)


def bare_with(**changes: object) -> Given:
    image = b.bare_mammogram(**changes)
    return given([b.result(b.lesion(image))], image)


def named(charset: str | list[str] | None, name: str) -> Given:
    image = b.mammogram(SpecificCharacterSet=charset, PatientName=name)
    return given([b.result(b.lesion(image, tracking_id="Läsion 病変 1"))], image)


def replacing() -> Given:
    image = b.mammogram()
    old = (b.COMPREHENSIVE_3D_SR, b.uid("old"), b.uid("old series"), b.uid("study"))
    return given([b.result(b.lesion(image))], image, predecessor=old)


def with_left_out() -> Given:
    image = b.mammogram()
    left_out = [LeftOut("segment 2", "its code SCT:76752008 is not a lesion")]
    return given([b.result(b.lesion(image))], image, left_out=left_out)


def long_words() -> Given:
    image = b.mammogram(PatientName="N" * 31 + "^" + "G" * 32, PatientID="I" * 64)
    finding = replace(b.MASS, meaning="a meaning with a \\ and " + "long " * 20)
    algorithm = replace(b.TRAINED, name="n" * 80, version="v" * 80, intended_use="research " * 300)
    marked = b.lesion(image, finding=finding, tracking_id="T" * 300 + "\n2")
    return given([b.result(marked)], image, algorithm=algorithm)


def everything() -> Given:
    """Every graphic type, two images and a tomosynthesis, assumed spacing, a predecessor, a mark left out."""
    images = [b.mammogram("rcc"), b.mammogram("lmlo", ImageLaterality="L", ViewPosition="MLO")]
    tomo = b.mammogram("tomo", SOPClassUID=b.BREAST_TOMOSYNTHESIS, NumberOfFrames=60)
    drawn = [b.lesion(images[0], kind, points, finding=b.MASS) for kind, points in b.REGIONS.items()]
    drawn += [b.lesion(images[1], finding=b.CALCIFICATION), b.lesion(tomo, frame=17), b.lesion(tomo, frame=18)]
    results = [b.result(each, number / 7, spacing_assumed=number == 3) for number, each in enumerate(drawn)]
    return given(
        results,
        *images,
        tomo,
        algorithm=b.UNTRAINED,
        left_out=[LeftOut("segment 2", "its code SCT:76752008 is not a lesion")],
        predecessor=(b.COMPREHENSIVE_3D_SR, b.uid("old"), b.uid("old series"), b.uid("study")),
    )


CASES: dict[str, Callable[[], Given]] = {
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
    "everything": everything,
}


# Whose images say laterality and view, without which there is no Mammography CAD SR.
CAD_CASES = [case for case in CASES if case not in ("bare", "empty orientation", "no sex")]


def without_result(failed: bool, *images: Dataset, of: Dataset | None = None, **more: Any) -> Dataset:
    """The report that says why there is no result."""
    of = of or b.patient_of(b.source())
    case = Case(of, {str(image.SOPInstanceUID): image for image in images}, (), b.UNTRAINED, **more)
    predecessor = (b.COMPREHENSIVE_3D_SR, b.uid("old"), b.uid("old series"), b.uid("study"))
    edition = Edition("tid1500", str(of.SOPInstanceUID), "reading", b.BUNDLE, b.WRITTEN_AT, predecessor)
    return build_without_result(case, edition, failed, "image 1.2.3 has 2 rows; expected 4 as in the segmentation")


WITHOUT_RESULT: dict[str, Callable[[], Dataset]] = {
    "failed": lambda: without_result(True, b.mammogram("rcc"), b.mammogram("lmlo")),
    "failed without images": lambda: without_result(True),
    "failed, from SR": lambda: without_result(True, of=b.patient_of(b.source(b.COMPREHENSIVE_SR))),
    "failed, images of two patients": lambda: without_result(True, b.mammogram(), b.mammogram("x", PatientID="P-2")),
    "failed, bare": lambda: without_result(True, b.bare_mammogram(), of=b.source()),
    "nothing": lambda: without_result(False, b.mammogram(), left_out=[LeftOut("segment 1", "it is skin")]),
}

DOCUMENTS = [
    *(("tid1500", case) for case in CASES),
    *(("mammo-cad-sr", case) for case in CAD_CASES),
    *(("without-result", case) for case in WITHOUT_RESULT),
]
"""Every document there is, by kind and case; `without-result` is a report of the kind tid1500 too."""


def make(case: str, kind: str) -> Dataset:
    return WITHOUT_RESULT[case]() if kind == "without-result" else CASES[case]().report(kind)


@cache
def file_of(case: str, kind: str = "tid1500") -> bytes:
    """The report of this case as a file, made once."""
    return b.saved(make(case, kind))


def read(case: str, kind: str = "tid1500") -> Dataset:
    """The report of this case, read from its file."""
    return dcmread(BytesIO(file_of(case, kind)))
