"""Make lesion objects as a reading workstation would: SEG and TID 1500 SR from known boxes, with highdicom.

Every run makes the same objects under the same UIDs, so an archive that receives them twice keeps them once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from config import __version__
from daemon.demo.cases import Case, KnownLesion
from daemon.dicom.uids import derive_uid

# highdicom would generate these in each run; date and time are the content date and time of the images.
_SAME_IN_EVERY_RUN = {
    "ContentDate": "20160426",
    "ContentTime": "121918",
    "InstanceCreationDate": "20160426",
    "InstanceCreationTime": "121918",
    "ContributionDateTime": "20160426121918",
    "DimensionOrganizationUID": derive_uid("demo dimensions"),
}
_MAKER = "mammod demo"
_MASS = codes.SCT.Mass
_ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
# Nominal, for SEG readers only: DDSM's scanners step 0.042 to 0.05 mm and images do not name theirs.
_NOMINAL_SPACING_MM = 0.05
# Direction of rows and of columns (PS3.3 C.7.6.1.1.1), for breasts shown with the chest wall on their own
# side.
_ORIENTATION = {
    ("L", "CC"): ["A", "R"],
    ("R", "CC"): ["P", "L"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "MLO"): ["P", "FL"],
}
# May be empty in patient and study, must be there (PS3.3 C.7.1.1, C.7.2.1).
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class Shape:
    """How a lesion is drawn: `kind` is SEG or SR, `form` an ellipse in the box or the box itself."""

    kind: str
    form: str


def tracking_uid(lesion: KnownLesion) -> str:
    """Return the Tracking UID of a lesion, by which the report refers to it."""
    return derive_uid("demo tracking", lesion.image_uid, str(lesion.number))


def tracking_id(case: Case, lesion: KnownLesion) -> str:
    """Return the Tracking ID of a lesion: image name and lesion number."""
    return f"{case.name} lesion {lesion.number}"


def build(case: Case, image: Dataset, shapes: Sequence[Shape]) -> Dataset:
    """Build one lesion object with all lesions of `case`, a shape for each; all shapes have the same kind.

    `image` is the mammogram as read from its file; it is not modified, and its pixels are not needed.
    """
    copy = normalised(case, image)
    forms = [shape.form for shape in shapes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The string .* person name")  # these patients' names have one component
        built = _segmentation(case, copy, forms) if shapes[0].kind == "SEG" else _report(case, copy, forms)
    for element in built.iterall():
        if element.keyword in _SAME_IN_EVERY_RUN:
            element.value = _SAME_IN_EVERY_RUN[element.keyword]
    return built


def normalised(case: Case, image: Dataset) -> Dataset:
    """Return a copy of the header with the attributes that highdicom requires and the file lacks."""
    copy = deepcopy(image)
    for keyword in _TYPE_2:
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
        series_instance_uid=derive_uid("demo series", "SEG", case.image_uid),
        series_number=2,
        sop_instance_uid=derive_uid("demo object", "SEG", case.image_uid),
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
    segmentation.PatientOrientation = image.PatientOrientation  # required without a frame of reference
    return segmentation


def _mask(lesion: KnownLesion, form: str) -> np.ndarray:
    """Return the mask of the lesion's box, (height, width), uint8 0 or 1; a pixel counts by its centre."""
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
            uid=derive_uid("demo device"), name=_MAKER, manufacturer_name=_MAKER
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
        series_instance_uid=derive_uid("demo series", "SR", case.image_uid),
        series_number=2,
        series_description="Lesions (demo)",
        sop_instance_uid=derive_uid("demo object", "SR", case.image_uid),
        is_complete=True,
        instance_number=1,
        manufacturer=_MAKER,
    )


def _region(lesion: KnownLesion, form: str, image: Dataset) -> hd.sr.ImageRegion:
    left, top, right, bottom = lesion.left, lesion.top, lesion.right, lesion.bottom
    middle, centre = (left + right) / 2, (top + bottom) / 2
    points: list[tuple[float, float]]
    if form == "box":
        graphic_type = hd.sr.GraphicTypeValues.POLYLINE
        points = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    else:  # the major axis comes first (PS3.3 C.18.6.1.2)
        graphic_type = hd.sr.GraphicTypeValues.ELLIPSE
        across: list[tuple[float, float]] = [(left, centre), (right, centre)]
        down: list[tuple[float, float]] = [(middle, top), (middle, bottom)]
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
    """Build TID 1600 without pixel spacing: these films have none, and highdicom's library needs it."""
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
