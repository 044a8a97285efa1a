"""What is sent, and DCMTK's dcmsend that sends it: as many processes as there shall be associations."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from benchmarks.receivers import Receiver
from tests.support.peers.programs import program

LIMIT_S = 240.0
_PREFIX = "1.2.826.0.1.3680043.8.498.77."


class Objects:
    """Part 10 files (Explicit VR little endian) in `folder`, split into `parts`.

    Before each sending they get new SOP Instance UIDs, written over the old ones.
    """

    def __init__(self, folder: Path, dataset: Dataset, count: int, parts: int = 1) -> None:
        self.folders = [folder / f"{part:02}" for part in range(parts)]
        self.count = count
        self._sent = 0
        dataset.SOPInstanceUID = self._uid(0)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for part in self.folders:
            part.mkdir(parents=True)
        first = self.folders[0] / "00000.dcm"
        dataset.save_as(first, enforce_file_format=True)
        content = first.read_bytes()
        old = dataset.SOPInstanceUID.encode()
        self._at = [match.start() for match in re.finditer(re.escape(old), content)]
        self._paths = [self.folders[number % parts] / f"{number:05}.dcm" for number in range(count)]
        for path in self._paths:
            path.write_bytes(content)
        self.size = len(content)
        os.sync()

    def _uid(self, number: int) -> str:
        return f"{_PREFIX}{1_000_000_000 + number}"  # always as long

    def renew(self) -> None:
        """Make all of them new instances."""
        for path in self._paths:
            self._sent += 1
            uid = self._uid(self._sent).encode()
            with path.open("r+b") as file:
                for at in self._at:
                    file.seek(at)
                    file.write(uid)


def send(objects: Objects, receiver: Receiver, *, no_delay: bool = True) -> float:
    """Send all parts at once, one association each; return seconds from first start to last end.

    Raises:
        AssertionError: one was not answered with success.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    if no_delay:
        environment["TCP_NODELAY"] = "1"
    reports = [folder.with_suffix(".txt") for folder in objects.folders]
    for report in reports:
        report.unlink(missing_ok=True)
    begun = time.perf_counter()
    processes = [
        subprocess.Popen(
            [
                *(program("dcmsend"), "-q", "-aec", receiver.aet, "--scan-directories", "--create-report-file"),
                *(str(report), "127.0.0.1", str(receiver.port), str(folder)),
            ],
            env=environment,
        )
        for folder, report in zip(objects.folders, reports, strict=True)
    ]
    try:
        for process in processes:
            process.wait(LIMIT_S)
        seconds = time.perf_counter() - begun
    finally:
        for process in processes:
            process.kill()
    stored = sum(_stored(report) for report in reports)
    assert stored == objects.count, f"{receiver.name} stored {stored} of {objects.count}"
    return seconds


def _stored(report: Path) -> int:
    if not report.exists():
        return 0
    found = re.search(r"with status SUCCESS +: (\d+)", report.read_text(errors="replace"))
    return int(found[1]) if found else 0


def mammogram(rows: int, columns: int) -> Dataset:
    """Make a 16-bit Digital Mammography X-Ray Image For Presentation with incompressible pixels."""
    image = _object("1.2.840.10008.5.1.4.1.1.1.2", "MG")
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = rows, columns
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 0
    image.PixelData = os.urandom(rows * columns * 2)
    return image


def report_of(size: int) -> Dataset:
    """Make a Basic Text SR of about `size` bytes, 100 bytes for each text."""
    report = _object("1.2.840.10008.5.1.4.1.1.88.11", "SR")
    report.ValueType = "CONTAINER"
    report.ContinuityOfContent = "SEPARATE"
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ConceptNameCodeSequence = [_code("126000", "DCM", "Imaging Measurement Report")]
    report.ContentSequence = [_text(number) for number in range(size // 240)]
    return report


def _text(number: int) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
    item.TextValue = f"finding {number:05} ".ljust(86, ".")
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _object(sop_class_uid: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = sop_class_uid
    dataset.PatientName, dataset.PatientID = "Benchmark^A", "BENCHMARK"
    dataset.StudyDate = dataset.StudyTime = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Modality = modality
    return dataset
