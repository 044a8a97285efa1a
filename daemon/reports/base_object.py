"""What every object that mammod writes has in common: whose it is, when it was made, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import highdicom as hd
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code as Concept
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DA, DT, TM

from config import __version__
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MANUFACTURER, MODEL_NAME
from daemon.errors import ReportError
from daemon.reports import image_header
from daemon.reports.case import Algorithm, Case, Edition
from daemon.reports.charset import CharacterSet
from daemon.reports.statements import series_description

# May be empty in patient and study, must be there (PS3.3 C.7.1.1, C.7.2.1).
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
PROCESSING_EQUIPMENT = Concept("109102", "DCM", "Processing Equipment")


def shown_images(case: Case) -> dict[str, Dataset]:
    """Return the images that lesions lie on, in the order of the report.

    Raises:
        ReportError: no lesion, a lesion on an image or frame that is missing, or images of different
            patients.
    """
    if not case.results:
        raise ReportError("there is no lesion to report on; a report needs at least one result")
    shown: dict[str, Dataset] = {}
    for lesion in (result.lesion for result in case.results):
        uid = lesion.image_uid
        if uid not in case.images:
            raise ReportError(f"a lesion lies on image {uid}, which was not given; give every image with a lesion")
        shown[uid] = case.images[uid]
        if not 1 <= lesion.frame <= image_header.frames(case.images[uid]):
            raise ReportError(f"a lesion lies on frame {lesion.frame} of image {uid}, which has no such frame")
    ids, issuers = zip(*map(image_header.patient_key, shown.values()), strict=True)
    if len(set(ids)) > 1 or len({issuer for issuer in issuers if issuer}) > 1:
        raise ReportError("the lesions lie on images of different patients; a report is of one patient")
    return shown


def home_image(case: Case, shown: Mapping[str, Dataset]) -> Dataset:
    """Return the image whose patient and study an object takes over.

    It is the first image in the lesion object's own study, else the first image.
    """
    study = case.source.get("StudyInstanceUID")
    in_study = (image for image in shown.values() if image.get("StudyInstanceUID") == study)
    return next(in_study, next(iter(shown.values())))


def in_zone_of(written_at: datetime, header: Dataset) -> datetime:
    """Return `written_at` in the image's Timezone Offset From UTC, which our object copies.

    The offset applies to all times of the object.
    """
    offset = str(header.get("TimezoneOffsetFromUTC") or "").strip()
    try:
        zone = datetime.strptime(offset, "%z").tzinfo
    except ValueError:
        return written_at
    return written_at if written_at.tzinfo is None else written_at.astimezone(zone)


def on_image(
    image: Dataset,
    case: Case,
    edition: Edition,
    *,
    sop_class_uid: str,
    modality: str,
    series_number: int,
    part: str = "",
) -> Dataset:
    """Return a new object about one image, in a series of its own in the image's study.

    It holds the modules patient, general study, general series, general equipment and SOP common; the kind of
    report adds its own. `part` tells several objects about the same image apart.

    Raises:
        ReportError: the image has no Study Instance UID or Series Instance UID.
    """
    header = image_header.patient_and_study(image)
    uid = str(image.SOPInstanceUID)
    part = f"{uid} {part}".strip()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not image.get(keyword):
            raise ReportError(f"image {uid} has no {keyword}; without it nothing can refer to it")
    made = new_object(
        header,
        case.algorithm,
        edition,
        sop_class_uid=sop_class_uid,
        modality=modality,
        series_number=series_number,
        part=part,
    )
    made.StudyInstanceUID = image.StudyInstanceUID
    side = image_header.laterality(image)
    made.Laterality = {image_header.LEFT: "L", image_header.RIGHT: "R"}.get(side, "") if side else ""
    return made


def new_object(
    header: Dataset,
    algorithm: Algorithm,
    edition: Edition,
    *,
    sop_class_uid: str,
    modality: str,
    series_number: int,
    part: str = "",
) -> Dataset:
    """Return an object with what all our objects have in common, except for the Study Instance UID.

    `header` is what `image_header.patient_and_study` gives of the home image.
    """
    written_at = in_zone_of(edition.written_at, header)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID(sop_class_uid)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID(edition.sop_instance_uid(part))
    made.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    made.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    for keyword in _TYPE_2:
        setattr(made, keyword, "")  # the image's come in their place
    made.SeriesInstanceUID = UID(edition.series_instance_uid(part))
    made.Modality, made.SeriesNumber, made.InstanceNumber = modality, series_number, 1
    made.SeriesDescription = series_description(algorithm)
    made.SeriesDate = made.InstanceCreationDate = DA(written_at.date())
    made.SeriesTime = made.InstanceCreationTime = TM(written_at.time())
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MANUFACTURER, MODEL_NAME, __version__
    made.ContributingEquipmentSequence = [_equipment(algorithm, written_at, CharacterSet.encodable_with(header))]
    _put_header(made, header)
    return made


def _equipment(algorithm: Algorithm, written_at: datetime, text: CharacterSet) -> Dataset:
    """Return the bundle as contributing equipment (PS3.3 C.12.1.5); retraining changes its Device UID."""
    equipment: Dataset = hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=PROCESSING_EQUIPMENT,
        manufacturer_model_name=text(algorithm.name)[:64],
        software_versions=text(algorithm.version)[:64],
        contribution_datetime=DT(written_at),
        contribution_description="Classification of marked lesions. Research use only."
        + ("" if algorithm.trained else " The model is untrained."),
    )
    equipment.DeviceUID = algorithm.device_uid
    return equipment


def _put_header(made: Dataset, header: Dataset) -> None:
    """Put the image's patient and study into `made`; what was never decoded is written byte for byte."""
    for tag in header.keys():  # noqa: SIM118 - iterating a Dataset itself would decode its elements
        made[tag] = header.get_item(tag)
    declared = made.get("SpecificCharacterSet")
    made.set_original_encoding(False, True, convert_encodings(declared) if declared else None)
