"""Synthetic mammograms and the lesion objects that mark them, made by highdicom and pydicom, never by our
readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

MASS = Code("4147007", "SCT", "Mass")
CALCIFICATION = Code("129748009", "SCT", "Radiographic calcification finding")
BREAST = Code("76752008", "SCT", "Breast")
PECTORAL_MUSCLE = Code("60005003", "SCT", "Pectoralis major muscle")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMICAL = Code("91723000", "SCT", "Anatomical Structure")

# pixels of the detector at the breast, millimetres
_SPACING = (0.1, 0.1)


def mammogram(
    rows: int = 200,
    columns: int = 160,
    *,
    sop_instance_uid: str | None = None,
    frames: int = 1,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    laterality: str = "L",
    view: str = "CC",
    bits_stored: int = 12,
    photometric: str = "MONOCHROME2",
    pixels: np.ndarray | None = None,
    patient_id: str = "TEST-1",
    seed: int = 0,
) -> Dataset:
    """A Digital Mammography X-Ray Image - For Presentation; with `frames` > 1 a Breast Tomosynthesis Image.

    `pixels` is unsigned (rows, columns) or (frames, rows, columns) and sets the size; without it the breast
    is a bright half disc with noise from `seed`. The data set has file meta information: `save_as` writes a
    Part 10 file.
    """
    if pixels is None:
        pixels = np.stack([_breast(rows, columns, bits_stored, seed + number) for number in range(frames)])
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[None]
    frames, rows, columns = pixels.shape
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 100"
    image.SOPClassUID = (
        BreastTomosynthesisImageStorage if frames > 1 else DigitalMammographyXRayImageStorageForPresentation
    )
    image.SOPInstanceUID = sop_instance_uid or generate_uid()
    _patient_and_study(image, patient_id, study_instance_uid or generate_uid())
    image.Modality = "MG"
    image.SeriesInstanceUID = series_instance_uid or generate_uid()
    image.SeriesNumber = 1
    image.SeriesDate = image.ContentDate = image.AcquisitionDate = "20240102"
    image.SeriesTime = image.ContentTime = image.AcquisitionTime = "101500"
    image.InstanceNumber = 1
    image.Manufacturer = "Test"
    image.ManufacturerModelName = "Synthetic"
    image.DeviceSerialNumber = "1"
    image.SoftwareVersions = "1"
    image.PatientOrientation = ["A", "R" if laterality == "L" else "L"] if view == "CC" else ["A", "F"]
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = photometric
    image.Rows, image.Columns = rows, columns
    image.BitsAllocated = 8 if bits_stored <= 8 else 16
    image.BitsStored, image.HighBit = bits_stored, bits_stored - 1
    image.PixelRepresentation = 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "US"
    image.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    image.LossyImageCompression = "00"
    image.BurnedInAnnotation = "NO"
    image.WindowCenter, image.WindowWidth = 2 ** (bits_stored - 1), 2**bits_stored
    image.BreastImplantPresent = "NO"
    if frames > 1:
        _tomosynthesis(image, frames, laterality)
    else:
        _full_field(image, laterality, view)
    image.PixelData = pixels.astype(np.uint8 if image.BitsAllocated == 8 else "<u2").tobytes()
    if len(image.PixelData) % 2:
        image.PixelData += b"\0"
    image["PixelData"].VR = "OB" if image.BitsAllocated == 8 else "OW"
    _file_meta(image)
    return image


def _breast(rows: int, columns: int, bits_stored: int, seed: int) -> np.ndarray:
    row, column = np.mgrid[:rows, :columns]
    inside = ((row - rows / 2) / (rows * 0.45)) ** 2 + (column / (columns * 0.8)) ** 2 < 1
    noise = np.random.default_rng(seed).integers(0, 2 ** (bits_stored - 2), (rows, columns))
    return np.where(inside, 2 ** (bits_stored - 1) + noise, 0)


def _patient_and_study(dataset: Dataset, patient_id: str, study_instance_uid: str) -> None:
    dataset.PatientName = "Synthetic^Patient"
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "F"
    dataset.PatientAge = "055Y"
    dataset.StudyInstanceUID = study_instance_uid
    dataset.StudyDate = "20240102"
    dataset.StudyTime = "101010"
    dataset.StudyID = "1"
    dataset.AccessionNumber = "A1"
    dataset.ReferringPhysicianName = ""


def _full_field(image: Dataset, laterality: str, view: str) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", ""]
    image.PresentationIntentType = "FOR PRESENTATION"
    image.PixelIntensityRelationship = "LOG"
    image.PixelIntensityRelationshipSign = -1 if image.PhotometricInterpretation == "MONOCHROME1" else 1
    image.ImageLaterality = laterality
    image.OrganExposed = "BREAST"
    image.PositionerType = "MAMMOGRAPHIC"
    image.ViewPosition = view
    image.ViewCodeSequence = [
        _code(
            Code("399162004", "SCT", "cranio-caudal")
            if view == "CC"
            else Code("399368009", "SCT", "medio-lateral oblique")
        )
    ]
    image.ViewCodeSequence[0].ViewModifierCodeSequence = []
    image.AnatomicRegionSequence = [_code(BREAST)]
    image.ImagerPixelSpacing = list(_SPACING)
    image.PixelSpacing = list(_SPACING)
    image.PixelSpacingCalibrationType = "GEOMETRY"
    image.PixelSpacingCalibrationDescription = "magnification 1"
    image.DetectorType = "DIRECT"
    image.FieldOfViewOrigin = [0, 0]
    image.FieldOfViewRotation = "0"
    image.FieldOfViewHorizontalFlip = "NO"
    image.AcquisitionContextSequence = []


def _tomosynthesis(image: Dataset, frames: int, laterality: str) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.NumberOfFrames = frames
    image.ContentQualification = "RESEARCH"
    image.FrameOfReferenceUID = generate_uid()
    image.PositionReferenceIndicator = ""
    image.AcquisitionContextSequence = []
    kind = {
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "TOMOSYNTHESIS",
    }
    for keyword, value in kind.items():
        setattr(image, keyword, value)
    view = _code(Code("399162004", "SCT", "cranio-caudal"))
    view.ViewModifierCodeSequence = []
    image.ViewCodeSequence = [view]
    shared = Dataset()
    shared.FrameAnatomySequence = [_dataset(AnatomicRegionSequence=[_code(BREAST)], FrameLaterality=laterality)]
    shared.PixelMeasuresSequence = [_dataset(PixelSpacing=list(_SPACING), SliceThickness=1.0)]
    shared.PlaneOrientationSequence = [_dataset(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])]
    shared.PixelValueTransformationSequence = [_dataset(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        _dataset(
            PlanePositionSequence=[_dataset(ImagePositionPatient=[float(number), 0.0, 0.0])],
            XRay3DFrameTypeSequence=[_dataset(FrameType=image.ImageType, **kind)],
            FrameContentSequence=[
                _dataset(
                    FrameReferenceDateTime="20240102101500",
                    FrameAcquisitionDateTime="20240102101500",
                    FrameAcquisitionDuration=1.0,
                )
            ],
        )
        for number in range(1, frames + 1)
    ]


def _dataset(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _file_meta(dataset: Dataset) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def segmentation_of(
    image: Dataset,
    masks: np.ndarray | Sequence[np.ndarray],
    kind: str = "BINARY",
    *,
    finding: Code | Sequence[Code] = MASS,
    category: Code | Sequence[Code] = ABNORMAL,
    tracking: bool = True,
    sop_instance_uid: str | None = None,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    max_fractional_value: int = 255,
) -> Dataset:
    """A SEG of `image` by highdicom: one segment per mask, (rows, columns) or (frames, rows, columns) each.

    `kind` is BINARY, FRACTIONAL (masks hold 0..1) or LABELMAP (masks must not overlap). `finding` and
    `category` are one code for all segments or one each. A mask of a multi-frame image with only two axes
    marks its first frame.
    """
    masks = [masks] if isinstance(masks, np.ndarray) and masks.ndim == 2 else list(masks)
    findings = [finding] * len(masks) if isinstance(finding, Code) else list(finding)
    categories = [category] * len(masks) if isinstance(category, Code) else list(category)
    frames = int(image.get("NumberOfFrames", 1))
    planes = np.zeros((frames, image.Rows, image.Columns, len(masks)), np.float32 if kind == "FRACTIONAL" else np.uint8)
    for number, mask in enumerate(masks):
        planes[: 1 if mask.ndim == 2 else frames, ..., number] = mask if mask.ndim == 3 else mask[None]
    measures = hd.PixelMeasuresSequence(pixel_spacing=_SPACING, slice_thickness=1.0)
    segmentation = hd.seg.Segmentation(
        source_images=[image],
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=f"Lesion {number}",
                segmented_property_category=categories[number - 1],
                segmented_property_type=findings[number - 1],
                algorithm_type="MANUAL",
                tracking_id=f"lesion {number}" if tracking else None,
                tracking_uid=generate_uid(entropy_srcs=[image.SOPInstanceUID, str(number)]) if tracking else None,
                anatomic_regions=[BREAST],
            )
            for number in range(1, len(masks) + 1)
        ],
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=sop_instance_uid or generate_uid(),
        instance_number=1,
        manufacturer="Test",
        manufacturer_model_name="Builder",
        software_versions="1",
        device_serial_number="1",
        pixel_measures=measures,
        max_fractional_value=max_fractional_value,
    )
    if "PatientOrientation" in image:
        segmentation.PatientOrientation = image.PatientOrientation
    if transfer_syntax_uid == RLELossless:
        segmentation.compress(RLELossless, encoding_plugin="pydicom")  # GDCM's encoder aborts on some sizes
    elif transfer_syntax_uid != ExplicitVRLittleEndian:
        segmentation.compress(transfer_syntax_uid)
    return segmentation


@dataclass(frozen=True)
class MarkedRegion:
    """What one measurement group of `measurement_report_of` says: points are (column, row), SCOORD
    convention.
    """

    graphic_type: str
    points: Sequence[Sequence[float]]
    frame: int | None = None
    finding: Code | None = MASS
    finding_site: Code | None = BREAST
    laterality: Code | None = None
    tracking_id: str = "lesion"
    tracking_uid: str = field(default_factory=generate_uid)
    on: Dataset | None = None  # where it lies on another image than the report's first


def measurement_report_of(
    image: Dataset, regions: Sequence[MarkedRegion], *, sop_instance_uid: str | None = None
) -> Dataset:
    """A Comprehensive 3D SR of TID 1500 by highdicom: a TID 1410 planar group per region, selected from
    `image`.
    """
    groups = [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=region.tracking_uid, identifier=region.tracking_id),
            referenced_region=hd.sr.ImageRegion(
                graphic_type=region.graphic_type,
                graphic_data=np.asarray(region.points, float),
                source_image=hd.sr.SourceImageForRegion(
                    (region.on or image).SOPClassUID,
                    (region.on or image).SOPInstanceUID,
                    referenced_frame_numbers=None if region.frame is None else [region.frame],
                ),
            ),
            finding_type=region.finding,
            finding_sites=None
            if region.finding_site is None
            else [hd.sr.FindingSite(region.finding_site, laterality=region.laterality)],
            geometric_purpose=Code("75958009", "SCT", "Bounded by"),
        )
        for region in regions
    ]
    others = {region.on.SOPInstanceUID: region.on for region in regions if region.on is not None}
    return structured_report(image, groups, evidence=list(others.values()), sop_instance_uid=sop_instance_uid)


def structured_report(
    image: Dataset,
    groups: Sequence[hd.sr.Template],
    *,
    evidence: Sequence[Dataset] = (),
    sop_instance_uid: str | None = None,
) -> Dataset:
    """A Comprehensive 3D SR of TID 1500 by highdicom around ready measurement groups."""
    context = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name="Reader^One"),
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=Code("43204002", "SCT", "Bilateral screening mammography"),
        imaging_measurements=groups,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[image, *evidence],
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=200,
        sop_instance_uid=sop_instance_uid or generate_uid(),
        instance_number=1,
        manufacturer="Test",
        is_complete=True,
    )


# --- content trees by hand, for writers whose nesting highdicom does not produce ---

IMAGE_REGION = Code("111030", "DCM", "Image Region")
ROOT = Code("126000", "DCM", "Imaging Measurement Report")
CAD_ROOT = Code("111036", "DCM", "Mammography CAD Report")


def item(
    value_type: str,
    name: Code | None,
    relationship: str = "CONTAINS",
    children: Sequence[Dataset] = (),
    **attributes: object,
) -> Dataset:
    """One SR content item (PS3.3 C.17.3); `attributes` are DICOM keywords."""
    content = Dataset()
    content.RelationshipType = relationship
    content.ValueType = value_type
    if name is not None:
        content.ConceptNameCodeSequence = [_code(name)]
    for keyword, value in attributes.items():
        setattr(content, keyword, value)
    if children:
        content.ContentSequence = list(children)
    return content


def container(name: Code, children: Sequence[Dataset], relationship: str = "CONTAINS") -> Dataset:
    return item("CONTAINER", name, relationship, children, ContinuityOfContent="SEPARATE")


def code_item(name: Code, value: Code, relationship: str = "CONTAINS", children: Sequence[Dataset] = ()) -> Dataset:
    return item("CODE", name, relationship, children, ConceptCodeSequence=[_code(value)])


def image_item(
    image: Dataset,
    *,
    relationship: str = "SELECTED FROM",
    name: Code | None = None,
    frame: int | None = None,
    segment: int | None = None,
) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    if segment is not None:
        reference.ReferencedSegmentNumber = segment
    return item("IMAGE", name, relationship, ReferencedSOPSequence=[reference])


def reference_item(path: Sequence[int], relationship: str = "SELECTED FROM") -> Dataset:
    """A by-reference relationship: `path` is the target's Referenced Content Item Identifier, (1, ...) from
    root.
    """
    content = Dataset()
    content.RelationshipType = relationship
    content.ReferencedContentItemIdentifier = list(path)
    return content


def scoord(
    graphic_type: str,
    points: Sequence[Sequence[float]],
    children: Sequence[Dataset],
    *,
    name: Code | None = IMAGE_REGION,
    relationship: str = "CONTAINS",
) -> Dataset:
    data = [float(value) for point in points for value in point]
    return item("SCOORD", name, relationship, children, GraphicType=graphic_type, GraphicData=data)


def report_by_hand(
    images: Sequence[Dataset],
    children: Sequence[Dataset],
    *,
    root: Code = ROOT,
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.88.22",
    evidence: Sequence[Dataset] | None = None,
    sop_instance_uid: str | None = None,
) -> Dataset:
    """An SR document with `children` under its root; the evidence sequence names `images` (or `evidence`)."""
    report = Dataset()
    report.SOPClassUID = sop_class_uid
    report.SOPInstanceUID = sop_instance_uid or generate_uid()
    _patient_and_study(report, images[0].PatientID, images[0].StudyInstanceUID)
    report.Modality = "SR"
    report.SeriesInstanceUID = generate_uid()
    report.SeriesNumber, report.InstanceNumber = 300, 1
    report.ContentDate, report.ContentTime = "20240102", "120000"
    report.Manufacturer = "Test"
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.PerformedProcedureCodeSequence = []
    report.ReferencedPerformedProcedureStepSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = _evidence(images if evidence is None else evidence)
    report.ValueType = "CONTAINER"
    report.ConceptNameCodeSequence = [_code(root)]
    report.ContinuityOfContent = "SEPARATE"
    report.ContentSequence = list(children)
    _file_meta(report)
    return report


def _evidence(images: Sequence[Dataset]) -> list[Dataset]:
    studies = []
    for image in images:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        series = Dataset()
        series.SeriesInstanceUID = image.SeriesInstanceUID
        series.ReferencedSOPSequence = [reference]
        study = Dataset()
        study.StudyInstanceUID = image.StudyInstanceUID
        study.ReferencedSeriesSequence = [series]
        studies.append(study)
    return studies


CENTER = Code("111010", "DCM", "Center")
OUTLINE = Code("111041", "DCM", "Outline")
RENDERING_INTENT = Code("111056", "DCM", "Rendering Intent")
PRESENTATION_REQUIRED = Code("111150", "DCM", "Presentation Required: Rendering device is expected to present")
NOT_FOR_PRESENTATION = Code("111152", "DCM", "Not for Presentation: Rendering device expected not to present")


def single_image_finding(
    finding: Code,
    library_path: Sequence[int],
    *,
    center: Sequence[float] | None = None,
    outline: Sequence[Sequence[float]] | None = None,
    shape: str = "POLYLINE",
    intent: Code = PRESENTATION_REQUIRED,
    parts: Sequence[Dataset] = (),
    relationship: str = "CONTAINS",
) -> Dataset:
    """TID 4006: a Single Image Finding whose geometry is selected by reference from the image library."""
    children = [code_item(RENDERING_INTENT, intent, "HAS CONCEPT MOD")]
    if center is not None:
        children.append(
            scoord("POINT", [center], [reference_item(library_path)], name=CENTER, relationship="HAS PROPERTIES")
        )
    if outline is not None:
        children.append(
            scoord(shape, outline, [reference_item(library_path)], name=OUTLINE, relationship="HAS PROPERTIES")
        )
    children.extend(parts)
    return code_item(Code("111059", "DCM", "Single Image Finding"), finding, relationship, children)


def cad_report_of(images: Sequence[Dataset], findings: Sequence[Dataset]) -> Dataset:
    """A Mammography CAD SR (TID 4000): image n of `images` has the library path (1, 1, n)."""
    library = container(
        Code("111028", "DCM", "Image Library"), [image_item(image, relationship="CONTAINS") for image in images]
    )
    impression = container(
        Code("111034", "DCM", "Individual Impression/Recommendation"),
        [code_item(RENDERING_INTENT, PRESENTATION_REQUIRED, "HAS CONCEPT MOD"), *findings],
        relationship="INFERRED FROM",
    )
    summary = code_item(
        Code("111017", "DCM", "CAD Processing and Findings Summary"),
        Code("111242", "DCM", "All algorithms succeeded; with findings"),
        children=[impression],
    )
    return report_by_hand(images, [library, summary], root=CAD_ROOT, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.50")
