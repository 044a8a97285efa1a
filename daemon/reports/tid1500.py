"""The report as Comprehensive 3D SR with a Measurement Report (PS3.16 TID 1500); one per lesion object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as Concept
from pydicom.uid import Comprehensive3DSRStorage

from daemon.dicom.equipment import MANUFACTURER, MODEL_NAME
from daemon.dicom.sop_classes import SEGMENTATION_CLASSES
from daemon.errors import ReportError
from daemon.lesions.lesion import Lesion
from daemon.reports import image_header
from daemon.reports.base_object import home_image, shown_images
from daemon.reports.case import Algorithm, Case, Edition, Result
from daemon.reports.charset import CharacterSet
from daemon.reports.sr_document import sr_document
from daemon.reports.statements import algorithm_parameters, in_full, lesion_statements, percent, report_statements
from daemon.reports.tracking import tracking

LESION = Concept("52988006", "SCT", "Lesion")
BREAST = Concept("76752008", "SCT", "Breast")
MAMMOGRAPHY = Concept("71651007", "SCT", "Mammography")
PROBABILITY_OF_CANCER = Concept("111047", "DCM", "Probability of cancer")
PERCENT = Concept("%", "UCUM", "Percent")
INTERPRETATION = Concept("363713009", "SCT", "Has interpretation")
MALIGNANT = Concept("21594007", "SCT", "Malignant")
BENIGN = Concept("30807003", "SCT", "Benign")
BOUNDED_BY = Concept("75958009", "SCT", "Bounded by")
COMMENT = Concept("121106", "DCM", "Comment")
SOURCE = Concept("260753009", "SCT", "Source")
SOURCE_REPORT = Concept("128225", "DCM", "Source report")
SEGMENTATION = Concept("113076", "DCM", "Segmentation")
MILLIMETER = Concept("mm", "UCUM", "millimeter")
PIXELS = Concept("{pixels}", "UCUM", "Pixels")

SERIES_NUMBER = 9147  # type 1 in the SR series; far from the numbers that modalities give

Group: TypeAlias = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations | hd.sr.MeasurementsAndQualitativeEvaluations


def build(case: Case, edition: Edition) -> list[Dataset]:
    """Return the one report on all lesions of one lesion object; the same arguments give the same bytes.

    Returns:
        One data set with file meta information, Explicit VR Little Endian; write it with
        `save_as(path, enforce_file_format=True)`.

    Raises:
        ReportError: what `shown_images` refuses, or a region that its graphic type does not allow
            (PS3.3 C.18.6.1.2).
    """
    shown = shown_images(case)
    home = home_image(case, shown)
    header = image_header.patient_and_study(home)
    text = CharacterSet.encodable_with(header)
    groups = [
        _group(result, known_as, shown[result.lesion.image_uid], case.algorithm, text)
        for result, known_as in zip(case.results, tracking(case.results, text), strict=True)
    ]
    statements = report_statements(case.algorithm, case.left_out)
    made = sr_document(
        measurement_report(case, home=home, shown=shown, groups=groups, statements=statements, text=text),
        sop_class_uid=Comprehensive3DSRStorage,
        evidence=(home, *shown.values(), case.source),
        header=header,
        algorithm=case.algorithm,
        edition=edition,
        series_number=SERIES_NUMBER,
    )
    return [made]


def measurement_report(
    case: Case,
    *,
    home: Dataset,
    shown: Mapping[str, Dataset],
    groups: Sequence[Group],
    statements: Iterable[str],
    text: CharacterSet,
) -> Dataset:
    """Return the root container of TID 1500; the statements precede image library and measurements."""
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=case.algorithm.device_uid,
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=text(case.algorithm.name),
    )
    (root,) = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, observer)
        ),
        procedure_reported=text.concepts(image_header.procedures(home)) or MAMMOGRAPHY,
        imaging_measurements=groups,
    )
    items = root.ContentSequence
    additions = [*(comment(statement, text) for statement in statements), _source_item(case.source)]
    if shown:
        additions.append(_image_library(shown.values(), text))
    for item in additions:
        items.insert(len(items) - 1, item)  # the measurements stay last
    return root


def comment(statement: str, text: CharacterSet) -> hd.sr.TextContentItem:
    """Return a comment."""
    return hd.sr.TextContentItem(COMMENT, text(statement), relationship_type="CONTAINS")


def _source_item(source: Dataset) -> hd.sr.ContentItem:
    """Return the reference to the lesion object; a SEG counts as an image, an SR does not (PS3.3 C.17.3)."""
    reference = source.SOPClassUID, source.SOPInstanceUID
    if source.SOPClassUID in SEGMENTATION_CLASSES:
        return hd.sr.ImageContentItem(SEGMENTATION, *reference, relationship_type="CONTAINS")
    return hd.sr.CompositeContentItem(SOURCE_REPORT, *reference, relationship_type="CONTAINS")


def _image_library(images: Iterable[Dataset], text: CharacterSet) -> hd.sr.ContainerContentItem:
    """Return the image library (TID 1600), which OHIF needs, with the descriptors that the headers give."""
    group = hd.sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type="CONTAINS")
    group.ContentSequence = hd.sr.ContentSequence([_library_entry(image, text) for image in images])
    library = hd.sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type="CONTAINS")
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library


def _library_entry(image: Dataset, text: CharacterSet) -> hd.sr.ImageContentItem:
    """Return one image with its descriptors (TID 1602 and 1603)."""
    context = "HAS ACQ CONTEXT"
    descriptors: list[hd.sr.ContentItem] = []
    if (modality := text.concept(image_header.modality(image))) is not None:
        descriptors.append(hd.sr.CodeContentItem(codes.DCM.Modality, modality, context))
    if (side := text.concept(image_header.laterality(image))) is not None:
        descriptors.append(hd.sr.CodeContentItem(codes.DCM.ImageLaterality, side, context))
    if (view := text.concept(image_header.view(image))) is not None:
        item = hd.sr.CodeContentItem(codes.DCM.ImageView, view, context)
        modifiers = text.concepts(image_header.view_modifiers(image))
        if modifiers:
            item.ContentSequence = hd.sr.ContentSequence(
                [hd.sr.CodeContentItem(codes.DCM.ImageViewModifier, each, "HAS CONCEPT MOD") for each in modifiers]
            )
        descriptors.append(item)
    if (size := image_header.size(image)) is not None:
        for name, number in zip((codes.DCM.PixelDataRows, codes.DCM.PixelDataColumns), size, strict=True):
            descriptors.append(hd.sr.NumContentItem(name, number, PIXELS, relationship_type=context))
    if (directions := image_header.orientation(image)) is not None:
        names = codes.DCM.PatientOrientationRow, codes.DCM.PatientOrientationColumn
        for name, direction in zip(names, directions, strict=True):
            descriptors.append(hd.sr.TextContentItem(name, text(direction), context))
    if (spacing := image_header.pixel_spacing(image)) is not None:
        names = codes.DCM.VerticalPixelSpacing, codes.DCM.HorizontalPixelSpacing
        for name, millimetres in zip(names, spacing, strict=True):
            descriptors.append(hd.sr.NumContentItem(name, millimetres, MILLIMETER, relationship_type=context))
    entry = hd.sr.ImageContentItem(SOURCE, image.SOPClassUID, image.SOPInstanceUID, relationship_type="CONTAINS")
    if descriptors:
        entry.ContentSequence = hd.sr.ContentSequence(descriptors)
    return entry


def _group(
    result: Result, known_as: tuple[str, str], image: Dataset, algorithm: Algorithm, text: CharacterSet
) -> Group:
    """Return the measurement group of one lesion: TID 1410, or TID 1501 if the region is a MULTIPOINT.

    TID 1410 forbids a MULTIPOINT as image region; the probability is then inferred from the points (TID 320).
    A region is repeated in the same way, because OHIF takes its own measurement (labelled by the first
    comment) from there. The template may be extended, but highdicom would not write the repetition.
    """
    lesion, prediction = result.lesion, result.prediction
    if not 0 <= prediction.probability <= 1:
        raise ReportError(f"the predicted probability is {prediction.probability}; it must lie in 0..1")
    region = _region(lesion, image)
    scattered = isinstance(region, hd.sr.CoordinatesForMeasurement)
    value = percent(float(prediction.probability))
    probability = hd.sr.Measurement(
        name=PROBABILITY_OF_CANCER,
        value=value,
        unit=PERCENT,
        referenced_coordinates=[region] if scattered else None,
    )
    interpretation = hd.sr.QualitativeEvaluation(INTERPRETATION, MALIGNANT if prediction.malignant else BENIGN)
    content = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=known_as[1], identifier=known_as[0]),
        "finding_type": text.concept(lesion.finding) or LESION,
        "finding_sites": _finding_sites(lesion, image, text),
        "algorithm_id": algorithm_identification(algorithm, prediction.bundle, prediction.engine, text),
        "measurements": [probability],
        "qualitative_evaluations": [interpretation],
    }
    if scattered:
        group = hd.sr.MeasurementsAndQualitativeEvaluations(**content)
    else:
        group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            **content, referenced_region=region, geometric_purpose=BOUNDED_BY
        )
        probability[0].ContentSequence = hd.sr.ContentSequence([_inferred_from(region)])
    for statement in (f"Probability of cancer: {in_full(value)} %", *lesion_statements(result, algorithm)):
        group[0].ContentSequence.append(comment(statement, text))
    return group


def _region(lesion: Lesion, image: Dataset) -> hd.sr.ImageRegion | hd.sr.CoordinatesForMeasurement:
    """Return the region as its source draws it."""
    graphic_type, points = lesion.region.graphic_type, np.asarray(lesion.region.points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ReportError(f"a region of type {graphic_type} does not consist of finite (column, row) points")
    frame = [lesion.frame] if image_header.frames(image) > 1 else None
    where = hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID, frame)
    try:
        if graphic_type == "MULTIPOINT":
            return hd.sr.CoordinatesForMeasurement(graphic_type, points, where)
        return hd.sr.ImageRegion(graphic_type, points, where)
    except ValueError as error:
        raise ReportError(f"a region of type {graphic_type} cannot have {len(points)} points: {error}") from error
    except KeyError as error:
        raise ReportError(f"a lesion lies on an object of SOP class {image.SOPClassUID}, not an image") from error


def _inferred_from(region: hd.sr.ImageRegion) -> hd.sr.CoordinatesForMeasurement:
    """Return the region as the one that a measurement was inferred from."""
    return hd.sr.CoordinatesForMeasurement(region.graphic_type, region.value, region.ContentSequence[0])


def _finding_sites(lesion: Lesion, image: Dataset, text: CharacterSet) -> list[hd.sr.FindingSite] | None:
    """Return site and side of the lesion object, else the breast and the side in the image's header."""
    site = text.concept(lesion.finding_site) or (BREAST if image_header.shows_breast(image) else None)
    side = text.concept(lesion.laterality) or text.concept(image_header.laterality(image))
    return [hd.sr.FindingSite(site, laterality=side)] if site else None


def algorithm_identification(
    algorithm: Algorithm, bundle: str, engine: str | None, text: CharacterSet
) -> hd.sr.AlgorithmIdentification:
    """Return the algorithm identification (TID 4019)."""
    return hd.sr.AlgorithmIdentification(
        name=text(algorithm.name),
        version=text(algorithm.version),
        parameters=[text(parameter) for parameter in algorithm_parameters(algorithm, bundle, engine)],
        manufacturer=MANUFACTURER,
    )
