"""Grayscale Softcopy Presentation State: outlines and results on each image, for viewers without SR graphics.

There is one object for each image with a lesion (PS3.3 A.33.1). It keeps the image's own grey scale
transformations and shows the whole image, so applying it adds the drawing and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from fractions import Fraction
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from daemon.errors import ReportError
from daemon.lesions.lesion import Lesion
from daemon.reports import image_header
from daemon.reports.base_object import on_image, shown_images
from daemon.reports.case import Algorithm, Case, Edition, Result
from daemon.reports.statements import RESEARCH_USE_SHORT, UNTRAINED_SHORT, series_description, short_result

SERIES_NUMBER = 9148
LAYER = "RESEARCH"
LAYER_DESCRIPTION = "Research only: what a program says of marked lesions"
_WHITE = 0xFFFF
_YELLOW = (0xF0F0, 0x7373, 0xDADA)  # CIELab of about (255, 230, 60), as PS3.3 C.10.7.1.1 scales it to 16 bits
MAX_POINTS = 8191  # of (column, row) as FL in Explicit VR, whose length has 16 bits
_LETTER = 0.015  # height of a line of text, as a share of the image's longer side; where a box for it is placed

_MODALITY_LUT = ("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "RescaleType")
_VOI_LUT = ("VOILUTSequence", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction")
_LUT_ITEM = ("LUTDescriptor", "LUTExplanation", "ModalityLUTType", "LUTData")


def build(case: Case, edition: Edition) -> list[Dataset]:
    """Return one presentation state for each image with a lesion, in the order of the report.

    Raises:
        ReportError: see `base_object.shown_images`; an image without Rows and Columns, or with grey scale
            attributes that cannot be read.
    """
    return [_state(image, case, edition) for image in shown_images(case).values()]


def _state(image: Dataset, case: Case, edition: Edition) -> Dataset:
    size = image_header.size(image)
    if size is None:
        raise ReportError(
            f"image {image.SOPInstanceUID} does not say its Rows and Columns; a presentation state needs them"
        )
    rows, columns = size
    numbered = [pair for pair in enumerate(case.results, start=1) if pair[1].lesion.image_uid == image.SOPInstanceUID]
    state = on_image(
        image,
        case,
        edition,
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        series_number=SERIES_NUMBER,
    )
    state.PresentationCreationDate = state.InstanceCreationDate
    state.PresentationCreationTime = state.InstanceCreationTime
    state.ContentLabel = "RESEARCH LESIONS"
    state.ContentDescription = series_description(case.algorithm)
    state.ContentCreatorName = ""
    state.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=image.SeriesInstanceUID, ReferencedImageSequence=[_reference(image)])
    ]
    state.DisplayedAreaSelectionSequence = [_whole_image(image, rows, columns)]
    state.GraphicLayerSequence = [
        _item(
            GraphicLayer=LAYER,
            GraphicLayerOrder=1,
            GraphicLayerRecommendedDisplayGrayscaleValue=_WHITE,
            GraphicLayerRecommendedDisplayCIELabValue=list(_YELLOW),
            GraphicLayerDescription=LAYER_DESCRIPTION,
        )
    ]
    state.GraphicAnnotationSequence = [
        *(_drawn(number, result, case.algorithm, image, rows, columns) for number, result in numbered),
        _marking(image, case.algorithm.trained),
    ]
    _keep_grey_scale(state, image)
    return state


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _reference(image: Dataset, frames: Sequence[int] = ()) -> Dataset:
    reference = _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    if frames:
        reference.ReferencedFrameNumber = list(frames)
    return reference


def _whole_image(image: Dataset, rows: int, columns: int) -> Dataset:
    r"""Return the displayed area (C.10.4): pixels are counted from 1\1 here, unlike in the graphics."""
    spacing = image_header.pixel_spacing(image)
    aspect = Fraction(1) if spacing is None else Fraction(spacing[0] / spacing[1]).limit_denominator(1000)
    return _item(
        DisplayedAreaTopLeftHandCorner=[1, 1],
        DisplayedAreaBottomRightHandCorner=[columns, rows],
        PresentationSizeMode="SCALE TO FIT",
        # Not the spacing: it would decide on which plane a viewer measures.
        PresentationPixelAspectRatio=[aspect.numerator, aspect.denominator],
    )


def _drawn(number: int, result: Result, algorithm: Algorithm, image: Dataset, rows: int, columns: int) -> Dataset:
    """Return outline and result of one lesion (C.10.5)."""
    points = graphic_points(result.lesion, rows, columns)
    graphic = _item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(points),
        GraphicData=points.ravel().tolist(),
        GraphicType="POINT" if len(points) == 1 else "POLYLINE",
    )
    if len(points) > 2 and (points[0] == points[-1]).all():
        graphic.GraphicFilled = "N"
    words = f"{number}: {short_result(result.prediction, algorithm)}"
    frames = [result.lesion.frame] if image_header.frames(image) > 1 else []
    return _item(
        ReferencedImageSequence=[_reference(image, frames)],
        GraphicLayer=LAYER,
        TextObjectSequence=[_beside(points, words, rows, columns)],
        GraphicObjectSequence=[graphic],
    )


def graphic_points(lesion: Lesion, rows: int, columns: int) -> np.ndarray:
    r"""Return the outline as Graphic Data in PIXEL units: float32 (N, 2) of (column, row).

    A closed outline ends where it began. SCOORD coordinates are taken over unchanged: C.10.5.1.1 (Table
    C.10-5), too, puts 0.0\0.0 at the top left CORNER of the first pixel, 1.0\1.0 at its bottom right corner
    and Columns\Rows at the bottom right corner of the last pixel. Values must lie within these bounds. (Only
    the displayed area counts whole pixels from 1\1.) Circles and ellipses are drawn as polygons, on which
    viewers agree.
    """
    points = lesion.outline
    if lesion.region.graphic_type == "POLYLINE":
        points = lesion.region.points  # thinned
    elif len(points) > 2:
        points = np.vstack([points, points[:1]])
    if len(points) > MAX_POINTS:
        raise ReportError(f"an outline has {len(points)} points; a presentation state holds at most {MAX_POINTS}")
    return np.clip(points, 0, [columns, rows]).astype(np.float32)


def _beside(points: np.ndarray, words: str, rows: int, columns: int) -> Dataset:
    """Return a text in a box right of the outline, or left if there is more room, anchored at the outline."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    height = _LETTER * max(rows, columns)
    width, gap = 0.6 * height * len(words), height / 2
    goes_right = right + gap + width <= columns or columns - right >= left
    start = min(right + gap, columns - width) if goes_right else max(left - gap - width, 0)
    start = max(start, 0)
    middle = (top + bottom) / 2
    head = float(np.clip(middle - height / 2, 0, max(rows - height, 0)))
    return _item(
        BoundingBoxAnnotationUnits="PIXEL",
        BoundingBoxTopLeftHandCorner=[start, head],
        BoundingBoxBottomRightHandCorner=[min(start + width, columns), min(head + height, rows)],
        BoundingBoxTextHorizontalJustification="LEFT" if goes_right else "RIGHT",
        AnchorPointAnnotationUnits="PIXEL",
        AnchorPoint=[right if goes_right else left, middle],
        AnchorPointVisibility="N",
        UnformattedTextValue=words,
    )


def _marking(image: Dataset, trained: bool) -> Dataset:
    """Return the research notice, at the top of the displayed area."""
    lines = [RESEARCH_USE_SHORT]
    if not trained:
        lines.append(UNTRAINED_SHORT)
    texts = [
        _item(
            BoundingBoxAnnotationUnits="DISPLAY",  # shares of the displayed area
            BoundingBoxTopLeftHandCorner=[0.01, 0.01 + 0.04 * line],
            BoundingBoxBottomRightHandCorner=[0.99, 0.04 + 0.04 * line],
            BoundingBoxTextHorizontalJustification="LEFT",
            UnformattedTextValue=words,
        )
        for line, words in enumerate(lines)
    ]
    return _item(ReferencedImageSequence=[_reference(image)], GraphicLayer=LAYER, TextObjectSequence=texts)


def _keep_grey_scale(state: Dataset, image: Dataset) -> None:
    """Copy modality LUT, VOI LUT and polarity of the image, all of which the state replaces (PS3.4 N.2.1)."""
    modality = _transformation(image, 1, "PixelValueTransformationSequence", _MODALITY_LUT)
    state.update({element.tag: element for element in modality})
    vois: list[tuple[Dataset, list[int]]] = []
    for frame in range(1, image_header.frames(image) + 1):
        voi = _transformation(image, frame, "FrameVOILUTSequence", _VOI_LUT)
        same = next((numbers for other, numbers in vois if other == voi), None)
        if same is None:
            vois.append((voi, [frame]))
        else:
            same.append(frame)
    for voi, numbers in vois:
        if len(vois) > 1:
            voi.ReferencedImageSequence = [_reference(image, numbers)]
    if items := [voi for voi, _ in vois if "WindowCenter" in voi or "VOILUTSequence" in voi]:
        state.SoftcopyVOILUTSequence = items
    shape = image.get("PresentationLUTShape")
    inverse = shape == "INVERSE" if shape else image.get("PhotometricInterpretation") == "MONOCHROME1"
    state.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"


def _transformation(image: Dataset, frame: int, macro: str, keywords: tuple[str, ...]) -> Dataset:
    """Return one of a frame's transformations: its LUT if there is one, else the numbers that stand for one.

    An image may offer several windows to choose from, a presentation state has one (C.11.8): the first.
    """
    found = Dataset()
    for header in _headers(image, frame, macro):
        for keyword in keywords:
            try:
                if header.get(keyword) not in (None, "", []):
                    found[keyword] = _first_of(header[keyword])
            except Exception as error:  # pydicom reads a value when it is asked for, and raises many kinds
                raise ReportError(
                    f"{keyword} of the image cannot be read, so a presentation state cannot keep its display"
                ) from error
    if keywords[0] in found:
        for keyword in keywords[1:]:
            found.pop(keyword, None)
    return found


def _headers(image: Dataset, frame: int, macro: str) -> Iterator[Dataset]:
    """Yield where a frame's transformation may stand, the most specific last (PS3.3 C.7.6.16)."""
    yield image
    for sequence, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame - 1)):
        groups = image.get(sequence) or []
        if index < len(groups):
            yield from (groups[index].get(macro) or [])[:1]


def _first_of(element: DataElement) -> DataElement:
    """Return an element with its first value only, and a LUT with a presentation state's attributes only."""
    copy = deepcopy(element)
    if copy.VR == "SQ":
        copy.value = copy.value[:1]
        for other in [each.tag for each in copy.value[0] if each.keyword not in _LUT_ITEM]:
            del copy.value[0][other]
    elif copy.VM > 1:
        copy.value = copy.value[0]
    if copy.VR == "DS":
        float(copy.value)  # pydicom leaves what is no number as it is
    return copy
