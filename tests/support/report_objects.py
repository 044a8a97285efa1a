"""Headers of mammograms and lesion objects, lesions and predictions, from which the report tests are made."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from daemon.dicom.uids import derive_uid, device_uid
from daemon.lesions.lesion import Code, LeftOut, Lesion, Region
from daemon.reports.case import Algorithm, Case, Edition, Measured, Predecessor, Result
from daemon.reports.display_image import View
from daemon.reports.registry import KINDS
from model.prediction import Prediction
from model.roi import Box, Roi

MG_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
BREAST_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"

BUNDLE = "sha256:" + "ab" * 32
WRITTEN_AT = datetime(2024, 3, 9, 14, 5, 6, 789000)
TRAINED = Algorithm(
    name="Xception-C",
    version="1.0.0",
    device_uid=device_uid(BUNDLE),
    trained=True,
    threshold=0.5,
    intended_use="Research on marked lesions in mammograms",
    temperature=1.25,
    measured=(
        Measured("AUC", 0.8123, 0.7754, 0.8456, "CBIS-DDSM, test set", 704),
        Measured("accuracy", 0.75, None, None, "CBIS-DDSM, test set", 704),
    ),
)
UNTRAINED = Algorithm(
    name="Xception-C",
    version="0",
    device_uid=device_uid("sha256:" + "00" * 32),
    trained=False,
    threshold=0.5,
    intended_use="Tests of the way of the data",
)


def uid(*parts: str) -> str:
    return derive_uid("test", *parts)


def as_read(dataset: Dataset) -> Dataset:
    """`dataset` written and read again, as the service meets it: no element decoded yet."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


def mammogram(name: str = "rcc", **changes: Any) -> Dataset:
    """The header of an ordinary digital mammogram; a change to None takes the attribute away."""
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID = MG_FOR_PRESENTATION
    image.SOPInstanceUID = uid("image", name)
    image.StudyInstanceUID = uid("study")
    image.SeriesInstanceUID = uid("series", name)
    image.StudyDate = "20240301"
    image.StudyTime = "101112"
    image.AccessionNumber = "A-1"
    image.ReferringPhysicianName = "Ref^Doctor"
    image.PatientName = "Test^Patient"
    image.PatientID = "P-1"
    image.IssuerOfPatientID = "HOSPITAL"
    image.PatientBirthDate = "19600102"
    image.PatientSex = "F"
    image.StudyID = "S-1"
    image.Modality = "MG"
    image.ImageLaterality = "R"
    image.ViewPosition = "CC"
    image.PatientOrientation = ["P", "L"]
    image.ImagerPixelSpacing = ["0.07", "0.07"]
    image.Rows = 3328
    image.Columns = 2560
    for keyword, value in changes.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    return as_read(image)


def mammogram_of_bytes(values: dict[int, bytes], implicit: bool = False) -> Dataset:
    """Return the header of `mammogram` with these bytes as values, as read from a bare file."""
    ordinary = mammogram()
    encoded = {int(tag): ordinary.get_item(tag).value for tag in ordinary.keys()}  # noqa: SIM118
    encoded |= {0x00080005: b"ISO_IR 100"} | values  # pydicom decodes the character set at once
    stream = io.BytesIO()
    for tag, value in sorted(encoded.items()):
        value += b" " * (len(value) % 2)
        stream.write(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
        stream.write(b"" if implicit else dictionary_VR(tag).encode())
        stream.write(struct.pack("<L" if implicit else "<H", len(value)) + value)
    stream.seek(0)
    return dcmread(stream, force=True)


def bare_mammogram(name: str = "bare", **changes: Any) -> Dataset:
    """Return what breaks highdicom's image library: no spacing, orientation, study date or patient ID."""
    image = Dataset()
    image.SOPClassUID = MG_FOR_PRESENTATION
    image.SOPInstanceUID = uid("image", name)
    image.StudyInstanceUID = uid("study")
    image.SeriesInstanceUID = uid("series", name)
    image.PatientName = "Bare"
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    return as_read(image)


def source(sop_class_uid: str = SEG, name: str = "lesions", **changes: Any) -> Dataset:
    """The header of a lesion object."""
    instance = Dataset()
    instance.SOPClassUID = sop_class_uid
    instance.SOPInstanceUID = uid("source", name)
    instance.StudyInstanceUID = uid("study")
    instance.SeriesInstanceUID = uid("series", "source", name)
    for keyword, value in changes.items():
        setattr(instance, keyword, value)
    return as_read(instance)


def patient_of(instance: Dataset) -> Dataset:
    """`instance` with the patient and study of `mammogram`, as a real lesion object has them."""
    image = mammogram()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
        setattr(instance, keyword, image[keyword].value)
    return as_read(instance)


SQUARE = [(100.5, 200.25), (180.5, 200.25), (180.5, 290.75), (100.5, 290.75), (100.5, 200.25)]
CONTOUR = [(300 + 40 * np.cos(a), 400 + 30 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 33)]
CONTOUR[-1] = CONTOUR[0]
REGIONS = {
    "POINT": [(120.5, 340.5)],
    "MULTIPOINT": [(10.5, 20.5), (30.25, 40.75), (15.125, 60.5)],
    "POLYLINE": CONTOUR,
    "CIRCLE": [(500.0, 600.0), (530.0, 600.0)],
    "ELLIPSE": [(100.0, 300.0), (200.0, 300.0), (150.0, 270.0), (150.0, 330.0)],
}


def lesion(image: Dataset, graphic_type: str = "POLYLINE", points: Any = SQUARE, **facts: Any) -> Lesion:
    array = np.asarray(points, dtype=np.float32).astype(np.float64)
    values: dict[str, Any] = {
        "source_uid": uid("source", "lesions"),
        "image_uid": str(image.SOPInstanceUID),
        "frame": 1,
        "outline": array,
        "region": Region(graphic_type, array),
    }
    return Lesion(**(values | facts))


def result(marked: Lesion, probability: float = 0.8712, prediction: Prediction | None = None, **facts: Any) -> Result:
    values: dict[str, Any] = {
        "pixels": np.zeros((299, 299), np.float32),
        "box": Box(50.0, 150.0, 349.0, 449.0),
        "padded": 0.0,
        "mm_per_pixel": 0.07,
        "spacing_assumed": False,
    }
    said = prediction or Prediction(probability, probability >= 0.5, "tensorflow-float32", BUNDLE)
    return Result(marked, Roi(**(values | facts)), said)


def reports(
    kind: str,
    results: list[Result],
    *images: Dataset,
    of: Dataset | None = None,
    algorithm: Algorithm = TRAINED,
    left_out: Sequence[LeftOut] = (),
    predecessor: Predecessor | None = None,
    written_at: datetime = WRITTEN_AT,
) -> list[Dataset]:
    """The objects of a kind, with UIDs as the service derives them."""
    of = of or source()
    dark = View(np.full((832, 640), 30, np.uint8), 0.25)  # of 3328 x 2560
    views = {(each.lesion.image_uid, each.lesion.frame): dark for each in results}
    case = Case(of, {str(image.SOPInstanceUID): image for image in images}, results, algorithm, left_out, views)
    edition = Edition(kind, str(of.SOPInstanceUID), "reading", BUNDLE, written_at, predecessor)
    return list(KINDS[kind](case, edition))


def report(results: list[Result], *images: Dataset, **more: Any) -> Dataset:
    """The TID 1500 report."""
    (made,) = reports("tid1500", results, *images, **more)
    return made


MASS = Code("4147007", "SCT", "Mass")
CALCIFICATION = Code("129748009", "SCT", "Radiographic calcification finding")
BREAST = Code("76752008", "SCT", "Breast")
LEFT = Code("7771000", "SCT", "Left")


def saved(written: Dataset) -> bytes:
    """The report as the file that would be stored."""
    stream = io.BytesIO()
    written.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def reread(written: Dataset) -> Dataset:
    """The report as a plain pydicom data set, read from its own file."""
    return dcmread(io.BytesIO(saved(written)))


def items(node: Dataset, code: str) -> list[Dataset]:
    """All content items below `node` whose concept name has this code value, in the order of the document."""
    found = []
    for item in node.get("ContentSequence", []):
        name = item.get("ConceptNameCodeSequence")  # a relationship by reference, or an image of a library, has none
        if name and name[0].CodeValue == code:
            found.append(item)
        found.extend(items(item, code))
    return found


def texts(node: Dataset, code: str) -> list[str]:
    return [item.TextValue for item in items(node, code)]


def meanings(node: Dataset, code: str) -> list[str]:
    """The coded values, as their meanings, of the CODE items of this name."""
    return [item.ConceptCodeSequence[0].CodeMeaning for item in items(node, code)]


def run(*command: str | Path) -> str:
    """What a peer program says; the test is skipped where the program is missing."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    finished = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return (finished.stdout + finished.stderr).decode("utf-8", "replace")
