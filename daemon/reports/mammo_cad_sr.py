"""The report as Mammography CAD SR (PS3.16 TID 4000), for mammography workstations; one per lesion object.

TID 4000 cannot be extended: what TID 1500 says in comments stands in the Impression Description (TID 4002)
here. mammod detects nothing, others marked the lesions. So Summary of Detections is Not Attempted, and each
lesion is the result of an analysis that succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as Concept
from pydicom.uid import MammographyCADSRStorage

from daemon.dicom.equipment import MANUFACTURER
from daemon.errors import ReportError
from daemon.lesions.geometry import region_of_outline
from daemon.lesions.lesion import Code, Lesion
from daemon.reports import image_header, sr_content_items
from daemon.reports.base_object import home_image, shown_images
from daemon.reports.case import Algorithm, Case, Edition, Result
from daemon.reports.charset import CharacterSet
from daemon.reports.sr_document import sr_document
from daemon.reports.statements import UNTRAINED, algorithm_parameters, lesion_statements, percent, report_statements
from daemon.reports.tracking import tracking

SERIES_NUMBER = 9150

DCM = codes.DCM
# pydicom's meanings of these two hold a zero-width space.
INDIVIDUAL_IMPRESSION = Concept("111034", "DCM", "Individual Impression/Recommendation")
IMPRESSION_ANALYSIS = Concept("111233", "DCM", "Individual Impression/Recommendation Analysis")
ENGLISH = Concept("en-US", "RFC5646", "English (United States)")
PERCENT = Concept("%", "UCUM", "Percent")
MILLIMETER = Concept("mm", "UCUM", "millimeter")
PIXELS = Concept("{pixels}", "UCUM", "Pixels")

# CID 6022.
_BREASTS = {
    image_header.LEFT: Concept("80248007", "SCT", "Left breast"),
    image_header.RIGHT: Concept("73056007", "SCT", "Right breast"),
    image_header.BOTH: Concept("63762007", "SCT", "Both breasts"),
}

# What CID 6014 calls a mass and calcifications on a single image, by the codes that mark them elsewhere.
_DENSITY = Concept("129793001", "SCT", "Mammography breast density")
_CLUSTER = Concept("129769006", "SCT", "Calcification Cluster")
_FINDINGS = {
    ("4147007", "SCT"): _DENSITY,  # mass
    ("M-03000", "SRT"): _DENSITY,
    ("129788004", "SCT"): _DENSITY,  # mammographic breast mass
    ("F-01791", "SRT"): _DENSITY,
    ("129748009", "SCT"): _CLUSTER,  # radiographic calcification finding
    ("F-01761", "SRT"): _CLUSTER,
}
_LESION = Code("52988006", "SCT", "Lesion")

_LIBRARY = 2  # place of the image library among the children of the root
Places = Mapping[tuple[str, int], tuple[int, ...]]
"""The image library's entries: image UID and frame to the path of the content item."""


def build(case: Case, edition: Edition) -> list[Dataset]:
    """Return the one report on all lesions of one lesion object; the same arguments give the same bytes.

    Raises:
        ReportError: what `shown_images` refuses; an image without laterality or view, without which a
            workstation does not know where to show a mark; a region that its graphic type does not allow.
    """
    shown = shown_images(case)
    home = home_image(case, shown)
    header = image_header.patient_and_study(home)
    text = CharacterSet.encodable_with(header)
    root = _root(case, shown, text)
    made = sr_document(
        root,
        sop_class_uid=MammographyCADSRStorage,
        evidence=(home, *shown.values(), case.source),
        header=header,
        algorithm=case.algorithm,
        edition=edition,
        series_number=SERIES_NUMBER,
    )
    return [made]


def _root(case: Case, shown: Mapping[str, Dataset], text: CharacterSet) -> Dataset:
    frames = dict.fromkeys((result.lesion.image_uid, result.lesion.frame) for result in case.results)
    places = {key: (1, _LIBRARY, number) for number, key in enumerate(frames, start=1)}
    known_as = tracking(case.results, text)
    findings = [
        _finding(result, name, shown[result.lesion.image_uid], case.algorithm, places, text)
        for result, name in zip(case.results, known_as, strict=True)
    ]
    analysis = sr_content_items.code(
        "CONTAINS",
        DCM.AnalysisPerformed,
        IMPRESSION_ANALYSIS,
        [
            *_algorithm(case.results[0], case.algorithm, text),
            *(sr_content_items.by_reference("HAS PROPERTIES", path) for path in places.values()),
        ],
    )
    return sr_content_items.container(
        None,
        DCM.MammographyCADReport,
        [
            sr_content_items.code("HAS CONCEPT MOD", DCM.LanguageOfContentItemAndDescendants, ENGLISH),
            sr_content_items.container(
                "CONTAINS", DCM.ImageLibrary, [_library_entry(shown[uid], frame, text) for uid, frame in frames]
            ),
            sr_content_items.code(
                "CONTAINS",
                DCM.CADProcessingAndFindingsSummary,
                DCM.AllAlgorithmsSucceededWithFindings,
                [
                    sr_content_items.text(
                        "HAS PROPERTIES", DCM.ImpressionDescription, _impression(case, known_as, text)
                    ),
                    *_algorithm(case.results[0], case.algorithm, text),
                    *(
                        sr_content_items.container("INFERRED FROM", INDIVIDUAL_IMPRESSION, [_rendering(), finding])
                        for finding in findings
                    ),
                ],
            ),
            sr_content_items.code("CONTAINS", DCM.SummaryOfDetections, DCM.NotAttempted),
            sr_content_items.code(
                "CONTAINS",
                DCM.SummaryOfAnalyses,
                DCM.Succeeded,
                [sr_content_items.container("INFERRED FROM", DCM.SuccessfulAnalyses, [analysis])],
            ),
        ],
        template="4000",
    )


def _impression(case: Case, known_as: Sequence[tuple[str, str]], text: CharacterSet) -> str:
    """Return what a reader must know of the report and of each lesion, one statement per line."""
    lines = report_statements(case.algorithm, case.left_out)
    lines.append(f"The lesions were marked in instance {case.source.SOPInstanceUID}, not by this program.")
    for result, (name, _uid) in zip(case.results, known_as, strict=True):
        details = (statement for statement in lesion_statements(result, case.algorithm) if statement != UNTRAINED)
        called = "malignant" if result.prediction.malignant else "benign"
        lines.append(f"{name}: called {called}. {' '.join(details)}")
    return text("\r\n".join(lines))


def _library_entry(image: Dataset, frame: int, text: CharacterSet) -> Dataset:
    """Return one image, or one frame of several, with its descriptors (TID 4020)."""
    context = "HAS ACQ CONTEXT"
    side, view = image_header.laterality(image), text.concept(image_header.view(image))
    if side is None or view is None:
        missing = " and ".join(name for name, value in (("laterality", side), ("view", view)) if value is None)
        raise ReportError(
            f"a Mammography CAD SR needs the {missing} of image {image.SOPInstanceUID}, which its header does not give"
        )
    modifiers = text.concepts(image_header.view_modifiers(image))
    descriptors = [
        sr_content_items.code(context, DCM.ImageLaterality, _BREASTS[side]),
        sr_content_items.code(
            context,
            DCM.ImageView,
            view,
            [sr_content_items.code("HAS CONCEPT MOD", DCM.ImageViewModifier, modifier) for modifier in modifiers],
        ),
    ]
    if (directions := image_header.orientation(image)) is not None:
        names = DCM.PatientOrientationRow, DCM.PatientOrientationColumn
        descriptors += [
            sr_content_items.text(context, name, text(value)) for name, value in zip(names, directions, strict=True)
        ]
    for keyword, name in (("StudyDate", DCM.StudyDate), ("ContentDate", DCM.ContentDate)):
        if (day := image_header.day(image, keyword)) is not None:
            descriptors.append(sr_content_items.date(context, name, day))
    for keyword, name in (("StudyTime", DCM.StudyTime), ("ContentTime", DCM.ContentTime)):
        if (moment := image_header.moment(image, keyword)) is not None:
            descriptors.append(sr_content_items.time(context, name, moment))
    if (spacing := image_header.pixel_spacing(image)) is not None:
        vertical, horizontal = spacing
        descriptors.append(sr_content_items.num(context, DCM.HorizontalPixelSpacing, horizontal, MILLIMETER))
        descriptors.append(sr_content_items.num(context, DCM.VerticalPixelSpacing, vertical, MILLIMETER))
    if (size := image_header.size(image)) is not None:
        names = DCM.PixelDataRows, DCM.PixelDataColumns
        descriptors += [
            sr_content_items.num(context, name, value, PIXELS) for name, value in zip(names, size, strict=True)
        ]
    return sr_content_items.image("CONTAINS", image, descriptors, frame if image_header.frames(image) > 1 else None)


def _finding(
    result: Result, known_as: tuple[str, str], image: Dataset, algorithm: Algorithm, places: Places, text: CharacterSet
) -> Dataset:
    """Return a Single Image Finding (TID 4006) with centre and outline (TID 4021)."""
    lesion, probability = result.lesion, result.prediction.probability
    if not 0 <= probability <= 1:
        raise ReportError(f"the predicted probability is {probability}; it must lie in 0..1")
    place = places[lesion.image_uid, lesion.frame]
    return sr_content_items.code(
        "CONTAINS",
        DCM.SingleImageFinding,
        _finding_code(lesion, text),
        [
            _rendering(),
            sr_content_items.text("HAS OBS CONTEXT", DCM.TrackingIdentifier, known_as[0]),
            sr_content_items.uidref("HAS OBS CONTEXT", DCM.TrackingUniqueIdentifier, known_as[1]),
            *_algorithm(result, algorithm, text),
            sr_content_items.num("HAS PROPERTIES", DCM.ProbabilityOfCancer, percent(probability), PERCENT),
            _shape(DCM.Center, "POINT", _centre(lesion), place),
            *(_shape(DCM.Outline, graphic_type, points, place) for graphic_type, points in _outline(lesion)),
        ],
    )


def _shape(concept: Concept, graphic_type: str, points: np.ndarray, place: Sequence[int]) -> Dataset:
    selected = [sr_content_items.by_reference("SELECTED FROM", place)]
    return sr_content_items.scoord("HAS PROPERTIES", concept, graphic_type, points, selected)


def _rendering() -> Dataset:
    """Return the intent to present each lesion: it answers somebody's mark, and must not be hidden."""
    return sr_content_items.code(
        "HAS CONCEPT MOD", DCM.RenderingIntent, DCM.PresentationRequiredRenderingDeviceIsExpectedToPresent
    )


def _finding_code(lesion: Lesion, text: CharacterSet) -> Concept | CodedConcept:
    """Return a code of CID 6014 for what the lesion object names, else its own code (extensible CID)."""
    finding = lesion.finding or _LESION
    return _FINDINGS.get((finding.value, finding.scheme)) or text.concept(finding) or text.concept(_LESION)


def _algorithm(result: Result, algorithm: Algorithm, text: CharacterSet) -> Iterable[Dataset]:
    """Return the algorithm identification (TID 4019)."""
    relationship = "HAS PROPERTIES"
    return (
        sr_content_items.text(relationship, DCM.AlgorithmName, text(algorithm.name)),
        sr_content_items.text(relationship, DCM.AlgorithmManufacturer, MANUFACTURER),
        sr_content_items.text(relationship, DCM.AlgorithmVersion, text(algorithm.version)),
        *(
            sr_content_items.text(relationship, DCM.AlgorithmParameters, text(parameter))
            for parameter in algorithm_parameters(algorithm, result.prediction.bundle, result.prediction.engine)
        ),
    )


def _centre(lesion: Lesion) -> np.ndarray:
    """Return the middle of the box around the outline."""
    return (lesion.outline.min(axis=0) + lesion.outline.max(axis=0)) / 2


def _outline(lesion: Lesion) -> list[tuple[str, np.ndarray]]:
    """Return the region as its source draws it (TID 4021).

    Scattered points are replaced by the line around them; a single point has no outline.
    """
    graphic_type, points = lesion.region.graphic_type, np.asarray(lesion.region.points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ReportError(f"a region of type {graphic_type} does not consist of finite (column, row) points")
    if graphic_type == "MULTIPOINT":
        around = region_of_outline(lesion.outline)
        graphic_type, points = around.graphic_type, around.points
    needed = {"POINT": (1, 1), "POLYLINE": (2, len(points)), "CIRCLE": (2, 2), "ELLIPSE": (4, 4)}.get(graphic_type)
    if needed is None or not needed[0] <= len(points) <= needed[1]:
        raise ReportError(f"a region of type {graphic_type} cannot have {len(points)} points")
    return [] if graphic_type == "POINT" else [(graphic_type, points)]
