"""Invariant 6 and the modes of files: nothing of the patient outside the spool, and nobody else reads
inside it.

Every attribute that may name a person is planted with a value that occurs nowhere else, at every level of
good and of bad inputs; then all that the service wrote outside the spool, at debug level, is searched.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, generate_uid
from typer.testing import CliRunner

from daemon.cli.app import app
from tests.support.cases import COLUMNS, ROWS, Case, make_case, report_on
from tests.support.lesion_objects import mammogram, segmentation_of
from tests.support.peers.archives import Orthanc
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.scu import EXPLICIT, encode, request_association, store
from tests.support.services import Service, save

# Everything of the patient modules (PS3.3 C.2, C.7.1.1), of who took part, and the identifiers of orders.
PERSONS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson",
    "ReferringPhysicianName", "ConsultingPhysicianName", "PhysiciansOfRecord", "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy", "OperatorsName", "RequestingPhysician", "ScheduledPerformingPhysicianName",
    "ContentCreatorName", "VerifyingObserverName", "PersonName", "ReviewerName", "NamesOfIntendedRecipientsOfResults",
)  # fmt: skip
IDENTIFIERS = (
    "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "MedicalRecordLocator", "AccessionNumber", "AdmissionID",
    "InsurancePlanIdentification", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "MilitaryRank",
    "EthnicGroup", "Occupation", "AdditionalPatientHistory", "StudyID", "RequestedProcedureID",
    "ScheduledProcedureStepID", "FillerOrderNumberImagingServiceRequest", "PlacerOrderNumberImagingServiceRequest",
    "RegionOfResidence", "CurrentPatientLocation", "PatientInstitutionResidence", "ServiceEpisodeID",
)  # fmt: skip
BIRTH_DATE, BIRTH_TIME = "18881224", "115533.777"
NESTED = (
    "OtherPatientIDsSequence",
    "RequestAttributesSequence",
    "ReferencedPatientAliasSequence",
    "OriginalAttributesSequence",
)
FOUND = re.compile(r"PLANTED|18881224|1888-12-24|115533", re.IGNORECASE)


def plant(dataset: Dataset, depth: int = 0) -> int:
    """Set every one of these attributes at every level; returns how many values there are."""
    for element in list(dataset):
        if element.VR == "SQ" and not keyword_for_tag(element.tag).startswith("Referenced"):
            for item in element.value:
                plant(item, depth + 1)
    count = 0
    for keyword in (*PERSONS, *IDENTIFIERS):
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        vr = dictionary_VR(tag)
        value = {"PN": f"PLANTED^{keyword[:40]}", "SH": f"PLANTED{count:03}"}.get(vr, f"PLANTED-{keyword}"[:64])
        setattr(dataset, keyword, value)
        count += 1
    dataset.PatientBirthDate, dataset.PatientBirthTime = BIRTH_DATE, BIRTH_TIME
    if depth < 2:
        for keyword in NESTED:
            inner = Dataset()
            count += plant(inner, depth + 2)
            setattr(dataset, keyword, [inner])
    return count


def bad_inputs(case: Case, folder: Path) -> dict[str, Path]:
    """Lesion objects and images that are accepted and cannot be used, as Part 10 files."""
    folder.mkdir()
    misfit = segmentation_of(case.image, np.ones((ROWS, COLUMNS), np.uint8))
    misfit.Rows, misfit.Columns = ROWS // 2, COLUMNS * 2
    broken_image = mammogram(ROWS, COLUMNS, patient_id="X")
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[50:90, 50:90] = 1
    broken_segmentation = segmentation_of(broken_image, mask)
    broken_image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    broken_image.PixelData = encapsulate([b"PLANTED pixel data " * 50])
    broken_image["PixelData"].VR = "OB"
    outside = dcmread(report_on(case.image, folder / "outside-before.dcm"))
    outside.SOPInstanceUID = outside.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for item in _items(outside):
        if "GraphicData" in item:
            item.GraphicData = [1e6] * len(item.GraphicData)
    inputs = {"misfit": misfit, "broken image": broken_image, "its seg": broken_segmentation, "outside": outside}
    paths = {}
    for name, dataset in inputs.items():
        plant(dataset)
        paths[name] = save(dataset, folder / f"{name}.dcm")
    return paths


def _items(dataset: Dataset) -> list[Dataset]:
    found = [dataset]
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += _items(item)
    return found


def encoded(dataset: Dataset) -> bytes:
    del dataset.file_meta
    return encode(dataset)


def refused_inputs() -> list[tuple[str, bytes]]:
    """SOP Instance UID of the command and a data set that is answered with a failure."""
    good = mammogram(8, 8)
    plant(good)
    uid = str(good.SOPInstanceUID)
    whole = encoded(good)
    study = str(good.StudyInstanceUID).encode()
    return [
        (uid, whole[: len(whole) // 2]),
        (uid, whole.replace(uid.encode(), b"PLANTED^UID".ljust(len(uid), b"X"))),
        (uid, whole.replace(study, b"PLANTED^STUDY".ljust(len(study), b"X"))),
        (uid, b"PLANTED" * 500),
    ]


def malformed() -> tuple[str, bytes]:
    """An image that is accepted although its dates and numbers are none."""
    image = mammogram(8, 8)
    plant(image)
    image.ImagerPixelSpacing = [1.234567, 1.234567]
    whole = encoded(image).replace(b"1.234567", b"PLANTED1").replace(BIRTH_DATE.encode(), b"PLANTED2")
    return str(image.SOPInstanceUID), whole


@pytest.mark.peers
def test_nothing_of_the_patient_leaves_the_spool_and_nobody_else_reads_it(
    new_service: Callable[..., Service], orthanc: Orthanc, case: Case, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.log"
    other = make_case(tmp_path / "other", 2)
    good = [case.image, case.segmentation, dcmread(report_on(other.image, tmp_path / "sr.dcm")), other.image]
    assert all(plant(dataset) > 100 for dataset in good)
    files = [save(dataset, tmp_path / f"good-{number}.dcm") for number, dataset in enumerate(good)]
    bad = bad_inputs(other, tmp_path / "bad")

    service = new_service(
        (orthanc.aet, orthanc.dicom_port),
        settings={
            "log": {"level": "debug"},
            "archive": {"retrieve": "c-get", "retrieve_after_s": 0},
            "audit": {"file": str(audit)},
            "listener": {"peers": [{"ae_title": "MODALITY"}]},
        },
    )
    service.environment["TMPDIR"] = str(temporary := tmp_path / "temporary")
    temporary.mkdir()
    before = os.umask(0)  # what the service inherits: everything open to everybody
    try:
        service.start()
    finally:
        os.umask(before)
    orthanc.upload(files[0].read_bytes())  # comes by C-GET
    assert set(dcmsend(files[1:], service.host, service.port, service.aet).values()) == {0}
    assert set(dcmsend(list(bad.values()), service.host, service.port, service.aet).values()) == {0}
    association = request_association(service.port, [(mammogram(8, 8).SOPClassUID, [EXPLICIT])])
    statuses = [
        store(association, content, uid, mammogram(8, 8).SOPClassUID).Status for uid, content in refused_inputs()
    ]
    assert [status >> 8 for status in statuses] == [0xC0, 0x01, 0xC0, 0xC0]
    uid, content = malformed()
    assert store(association, content, uid, mammogram(8, 8).SOPClassUID).Status == 0x0000
    association.release()
    assert not request_association(service.port, calling="STRANGER").is_established

    def settled() -> bool:
        states = sorted(job.state for job in service.jobs())
        return states == ["done"] * 2 + ["quarantined"] * 3

    wait_until(settled, "two jobs done and three quarantined", 120)
    said = [
        run("status", service),
        run("status", service, "--json"),
        run("check", service),
        run("jobs", service, first="list"),
        run("jobs", service, first="export"),
        run("jobs", service, "--format", "jsonl", first="export"),
    ]
    said += [run("jobs", service, str(job.id), first="show") for job in service.jobs()]
    for path in ("healthz", "readyz", "status", "live", "metrics", "overview", ""):
        with urllib.request.urlopen(f"http://127.0.0.1:{service.status_port}/{path}", timeout=60) as answer:
            said.append(answer.read().decode())
    wrong = [path for path in (service.spool, *service.spool.rglob("*")) if path.stat().st_mode & 0o777 != wanted(path)]
    assert not wrong, "modes of files and directories"
    assert service.stop() == 0

    said += [service.log, audit.read_text()]
    # The ledger may lie on another machine; and nothing is left among the system's temporary files.
    said += [path.read_bytes().decode("latin-1") for path in service.spool.glob("ledger.sqlite*")]
    said += [path.read_bytes().decode("latin-1") for path in temporary.rglob("*") if path.is_file()]
    for piece in (
        "instance refused",
        "lesion object quarantined|job quarantined",
        "job classified",
        "association rejected",
    ):
        assert re.search(piece, service.log), piece
    for piece in ("110104", "110113", "110120", "110121"):
        assert piece in audit.read_text(), "transfers, alerts, start and stop are in the trail"
    assert transfers(audit) >= {("MODALITY", service.aet), (orthanc.aet, service.aet), (service.aet, orthanc.aet)}
    assert [match.group() for text in said if (match := FOUND.search(text))] == []
    assert audit.stat().st_mode & 0o777 == 0o600
    planted = b"".join(path.read_bytes() for path in service.spool.rglob("*.dcm"))
    assert b"PLANTED" in planted and BIRTH_DATE.encode() in planted, "the spool has it: the search can find something"


def transfers(audit: Path) -> set[tuple[str, ...]]:
    """AE titles of sender and receiver in each message of instances transferred."""
    roots = [etree.fromstring(line) for line in audit.read_bytes().splitlines() if b"110104" in line]
    return {
        tuple(one.get("AlternativeUserID").removeprefix("AETITLES=") for one in root.findall("ActiveParticipant"))
        for root in roots
    }


def wanted(path: Path) -> int:
    return 0o700 if path.is_dir() else 0o600


def run(command: str, service: Service, *more: str, first: str = "") -> str:
    arguments = [command, *([first] if first else []), *more, "--config", str(service.settings)]
    result = CliRunner().invoke(app, arguments)
    assert result.output, arguments
    return result.output
