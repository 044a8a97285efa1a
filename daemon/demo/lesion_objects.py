"""Lesion objects as a reading workstation would make them: SEG and TID 1500 SR with highdicom, from known boxes.

Two runs make the same objects under the same UIDs, so that an archive which gets them twice holds them once.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from config import __version__
from daemon.demo.cases import Case, KnownLesion

_NAMESPACE = uuid.UUID("6f6f0a5e-6f54-4b58-9f4e-3b0a8a1f5c11")  # the demo's own, for UIDs by name
_WRITTEN = ("20160426", "121918")  # the content date and time of the images: objects are the same in every run
_MAKER = "mammod demo"
_MASS = codes.SCT.Mass
_ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
# The scanners of DDSM step 0.042 to 0.05 mm and the images do not say which one it was: nominal, for SEG readers only.
_NOMINAL_SPACING_MM = 0.05
# Direction of rows and of columns (PS3.3 C.7.6.1.1.1), for breasts shown with the chest wall on their own side.
_ORIENTATION = {
    ("L", "CC"): ["A", "R"],
    ("R", "CC"): ["P", "L"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "MLO"): ["P", "FL"],
}


@dataclass(frozen=True)
class Shape:
    """How a lesion is drawn in its object: `kind` is SEG or SR; `form` an ellipse in the box, or the box itself."""

    kind: str
    form: str


def uid_for(*names: object) -> str:
    """A UID under 2.25 that is the same for the same names (PS3.5 B.2, from a UUID of version 5)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, names))).int}"


def tracking_uid(lesion: KnownLesion) -> str:
    """The Tracking UID that the demo gives a lesion, by which the report names it again."""
    return uid_for("tracking", lesion.image_uid, lesion.number)


def tracking_id(case: Case, lesion: KnownLesion) -> str:
    return f"{case.name} lesion {lesion.number}"


def build(case: Case, image: Dataset, shapes: Sequence[Shape]) -> Dataset:
    """One lesion object with all lesions of `case`, one shape for each; all shapes are of the first one's kind.

    `image` is the mammogram as read from its file; it is not changed and its pixels are not needed.
    """
    copy = normalised(case, image)
    forms = [shape.form for shape in shapes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The string .* person name")  # these patients' names have one component
        built = _segmentation(case, copy, forms) if shapes[0].kind == "SEG" else _report(case, copy, forms)
    for date, time in (("ContentDate", "ContentTime"), ("InstanceCreationDate", "InstanceCreationTime")):
        setattr(built, date, _WRITTEN[0])
        setattr(built, time, _WRITTEN[1])
    return built


def normalised(case: Case, image: Dataset) -> Dataset:
    """A copy of the header with what highdicom insists on and the file lacks; the identity of patient and study stays."""
    copy = Dataset()
    copy.update({element.tag: element for element in image if element.keyword != "PixelData"})
    copy.file_meta = image.file_meta
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        copy.setdefault(keyword, "")
    for keyword in ("StudyDate", "StudyTime", "ReferringPhysicianName", "InstanceNumber"):
        copy.setdefault(keyword, "")
    copy.PatientOrientation = _ORIENTATION[case.laterality, case.view]
    return copy


def _segmentation(case: Case, image: Dataset, forms: Sequence[str]) -> Dataset:
    masks = np.zeros((1, image.Rows, image.Columns, len(case.lesions)), dtype=np.uint8)
    for index, (lesion, form) in enumerate(zip(case.lesions, forms, strict=True)):
        masks[0, lesion.top : lesion.bottom, lesion.left : lesion.right, index] = _mask(lesion, form)
    segmentation = hd.seg.Segmentation(
        source_images=[image],
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=tracking_id(case, lesion),
                segmented_property_category=_ABNORMAL,
                segmented_property_type=_MASS,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
                tracking_id=tracking_id(case, lesion),
                tracking_uid=tracking_uid(lesion),
                anatomic_regions=[codes.SCT.Breast],
            )
            for number, lesion in enumerate(case.lesions, start=1)
        ],
        series_instance_uid=uid_for("series", "SEG", case.image_uid),
        series_number=2,
        sop_instance_uid=uid_for("object", "SEG", case.image_uid),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=__version__,
        device_serial_number="1",
        content_label="LESIONS",
        series_description="Lesions (demo)",
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=(_NOMINAL_SPACING_MM, _NOMINAL_SPACING_MM), slice_thickness=1.0
        ),
    )
    segmentation.PatientOrientation = image.PatientOrientation  # needed where there is no frame of reference
    return segmentation


def _mask(lesion: KnownLesion, form: str) -> np.ndarray:
    """The lesion's pixels within its box: shape (height, width), uint8 of 0 and 1; a pixel counts by its centre."""
    height, width = lesion.bottom - lesion.top, lesion.right - lesion.left
    if form == "box":
        return np.ones((height, width), dtype=np.uint8)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    inside = ((columns / width - 0.5) ** 2 + (rows / height - 0.5) ** 2) <= 0.25
    return inside.astype(np.uint8)


def _report(case: Case, image: Dataset, forms: Sequence[str]) -> Dataset:
    groups = [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=tracking_uid(lesion), identifier=tracking_id(case, lesion)
            ),
            referenced_region=_region(lesion, form, image),
            finding_type=_MASS,
            finding_sites=[
                hd.sr.FindingSite(
                    anatomic_location=codes.SCT.Breast,
                    laterality=codes.SCT.Left if case.laterality == "L" else codes.SCT.Right,
                )
            ],
        )
        for lesion, form in zip(case.lesions, forms, strict=True)
    ]
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_for("device"), name=_MAKER, manufacturer_name=_MAKER
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.Mammography,
        imaging_measurements=groups,
    )
    content[0].ContentSequence.insert(_index_of_measurements(content), _image_library(image))
    return hd.sr.Comprehensive3DSR(
        evidence=[image],
        content=content[0],
        series_instance_uid=uid_for("series", "SR", case.image_uid),
        series_number=2,
        series_description="Lesions (demo)",
        sop_instance_uid=uid_for("object", "SR", case.image_uid),
        is_complete=True,
        instance_number=1,
        manufacturer=_MAKER,
    )


def _region(lesion: KnownLesion, form: str, image: Dataset) -> hd.sr.ImageRegion:
    left, top, right, bottom = lesion.left, lesion.top, lesion.right, lesion.bottom
    middle, centre = (left + right) / 2, (top + bottom) / 2
    if form == "box":
        graphic_type = hd.sr.GraphicTypeValues.POLYLINE
        points = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    else:  # the major axis comes first (PS3.3 C.18.6.1.2)
        graphic_type = hd.sr.GraphicTypeValues.ELLIPSE
        across, down = [(left, centre), (right, centre)], [(middle, top), (middle, bottom)]
        points = across + down if right - left >= bottom - top else down + across
    return hd.sr.ImageRegion(
        graphic_type=graphic_type,
        graphic_data=np.array(points, dtype=float),
        source_image=hd.sr.SourceImageForRegion(
            referenced_sop_class_uid=image.SOPClassUID, referenced_sop_instance_uid=image.SOPInstanceUID
        ),
    )


def _index_of_measurements(content: hd.sr.MeasurementReport) -> int:
    names = [CodedConcept.from_dataset(item.ConceptNameCodeSequence[0]) for item in content[0].ContentSequence]
    return names.index(codes.DCM.ImagingMeasurements)


def _image_library(image: Dataset) -> hd.sr.ContainerContentItem:
    """TID 1600 without pixel spacing, which these films do not have and highdicom's own library cannot do without."""
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    entry = hd.sr.ImageContentItem(
        name=CodedConcept("260753009", "SCT", "Source"),
        referenced_sop_class_uid=UID(image.SOPClassUID),
        referenced_sop_instance_uid=UID(image.SOPInstanceUID),
        relationship_type=contains,
    )
    group = hd.sr.ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=contains)
    modality = hd.sr.CodeContentItem(
        name=codes.DCM.Modality,
        value=codes.cid29.Mammography,
        relationship_type=hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT,
    )
    group.ContentSequence = hd.sr.ContentSequence([modality, entry])
    library = hd.sr.ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library
