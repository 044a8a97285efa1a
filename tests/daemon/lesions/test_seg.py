"""SEG objects made by highdicom (modified by hand if it cannot), against masks of known geometry."""

from __future__ import annotations

import copy
from collections.abc import Collection
from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from config.lesion_terms import NOT_LESION_CODES
from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import References, lesion_references, read_lesions
from tests.support.lesion_objects import (
    ANATOMICAL,
    BREAST,
    CALCIFICATION,
    MASS,
    PECTORAL_MUSCLE,
    mammogram,
    segmentation_of,
)

ROWS, COLUMNS = 61, 53  # no multiple of eight: bit-packed frames begin inside a byte


def rectangle(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def box(points: np.ndarray) -> tuple[float, float, float, float]:
    """left, top, right, bottom"""
    return (*points.min(axis=0), *points.max(axis=0))


def sent(dataset: Dataset) -> Dataset:
    """The data set as it comes out of a file."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(file.getvalue()))


def read(
    segmentation: Dataset, *images: Dataset, not_lesions: Collection[str] = NOT_LESION_CODES, max_fraction: float = 0.3
) -> LesionReading:
    return read_lesions(
        segmentation,
        {str(image.SOPInstanceUID): image for image in images},
        {},
        Lesions(not_lesions=tuple(not_lesions), max_image_fraction=max_fraction),
    )


@pytest.fixture(scope="module")
def image() -> Dataset:
    return mammogram(ROWS, COLUMNS)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_each_segment_is_a_lesion_with_its_outline_and_codes(image: Dataset, kind: str) -> None:
    masks = [rectangle(10, 5, 20, 9), rectangle(30, 40, 41, 50)]
    segmentation = sent(segmentation_of(image, masks, kind, finding=[MASS, CALCIFICATION]))
    assert lesion_references(segmentation) == References((image.SOPInstanceUID,), ())
    reading = read(segmentation, image)
    assert reading.source_uid == segmentation.SOPInstanceUID
    assert [box(lesion.outline) for lesion in reading.lesions] == [(5, 10, 9, 20), (40, 30, 50, 41)]
    assert reading.left_out == ()
    first, second = reading.lesions
    described = {item.SegmentNumber: item for item in segmentation.SegmentSequence}
    assert (first.image_uid, first.frame) == (image.SOPInstanceUID, 1)
    assert (first.tracking_id, first.tracking_uid) == ("lesion 1", described[1].TrackingUID)
    assert first.finding is not None and (first.finding.value, first.finding.meaning) == ("4147007", "Mass")
    assert second.finding is not None and second.finding.value == "129748009"
    assert first.finding_site is not None and first.finding_site.value == "76752008"
    assert [code.value for code in first.labels] == ["4147007", "49755003"]
    assert first.region.graphic_type == "POLYLINE"
    assert (first.region.points[0] == first.region.points[-1]).all()


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("FRACTIONAL", RLELossless),
        ("LABELMAP", RLELossless),
        ("FRACTIONAL", JPEG2000Lossless),
        ("LABELMAP", JPEGLSLossless),
    ],
)
def test_compressed_segmentations_are_decoded(image: Dataset, kind: str, syntax: str) -> None:
    masks = [rectangle(10, 5, 20, 9), rectangle(30, 40, 41, 50)]
    segmentation = sent(segmentation_of(image, masks, kind, transfer_syntax_uid=syntax))
    assert segmentation.file_meta.TransferSyntaxUID == syntax
    assert [box(lesion.outline) for lesion in read(segmentation, image).lesions] == [(5, 10, 9, 20), (40, 30, 50, 41)]


@pytest.mark.parametrize("maximum", [255, 200, 3])
def test_a_fraction_belongs_to_the_lesion_from_one_half(image: Dataset, maximum: int) -> None:
    fractions = np.zeros((ROWS, COLUMNS), np.float32)
    fractions[10:20, 5:9] = 0.34
    fractions[12:18, 5:9] = 0.67
    segmentation = sent(segmentation_of(image, fractions, "FRACTIONAL", max_fractional_value=maximum))
    (lesion,) = read(segmentation, image).lesions
    assert box(lesion.outline) == (5, 12, 9, 18)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(3, 17), columns=st.integers(3, 17), seed=st.integers(0, 2**32 - 1))
def test_bit_packed_frames_of_any_size_are_found_again(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(3):
        top, left = rng.integers(0, rows), rng.integers(0, columns)
        masks.append(
            rectangle(top, left, rng.integers(top + 1, rows + 1), rng.integers(left + 1, columns + 1), (rows, columns))
        )
    image = mammogram(rows, columns)
    reading = read(sent(segmentation_of(image, masks)), image, max_fraction=1)
    for mask, lesion in zip(masks, reading.lesions, strict=True):
        row, column = np.nonzero(mask)
        assert box(lesion.outline) == (column.min(), row.min(), column.max() + 1, row.max() + 1)


def test_each_connected_component_is_a_lesion_of_its_own(image: Dataset) -> None:
    mask = rectangle(10, 5, 20, 9) | rectangle(30, 40, 41, 50)
    mask[41, 50] = 1  # touches the second by a corner only: 8-connected
    segmentation = sent(segmentation_of(image, mask))
    first, second = read(segmentation, image).lesions
    assert (box(first.outline), box(second.outline)) == ((5, 10, 9, 20), (40, 30, 51, 42))
    # one Tracking UID for two lesions would join them in a viewer
    assert (first.tracking_id, second.tracking_id) == ("lesion 1 (1)", "lesion 1 (2)")
    assert first.tracking_uid is None and second.tracking_uid is None


def test_a_stray_speck_beside_a_lesion_is_left_out_and_said_so(image: Dataset) -> None:
    mask = rectangle(10, 5, 40, 35)
    mask[50, 50] = 1
    reading = read(sent(segmentation_of(image, mask)), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(5, 10, 35, 40)]
    assert reading.lesions[0].tracking_uid is not None
    (speck,) = reading.left_out
    assert "1 pixels at row 50, column 50" in speck.what and "stray speck" in speck.reason


def test_small_marks_alone_are_lesions(image: Dataset) -> None:
    mask = rectangle(10, 5, 12, 7) | rectangle(30, 40, 31, 41)
    assert [box(lesion.outline) for lesion in read(sent(segmentation_of(image, mask)), image).lesions] == [
        (5, 10, 7, 12),
        (40, 30, 41, 31),
    ]


def test_noise_is_not_taken_for_lesions() -> None:
    image = mammogram(80, 80)
    mask = np.zeros((80, 80), np.uint8)
    mask[::2, ::2] = 1
    with pytest.raises(LesionError, match="1600 separate parts on one frame"):
        read(sent(segmentation_of(image, mask)), image)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segment_of_noise_does_not_spoil_the_others(kind: str) -> None:
    image = mammogram(80, 80)
    noise = np.zeros((80, 80), np.uint8)
    noise[::2, 20::2] = 1
    reading = read(sent(segmentation_of(image, [rectangle(10, 5, 20, 9, (80, 80)), noise], kind)), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(5, 10, 9, 20)]
    assert [left.what for left in reading.left_out] == ["segment 2"]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_anatomy_is_left_out(image: Dataset, kind: str) -> None:
    masks = [rectangle(0, 0, 60, 20), rectangle(30, 40, 41, 50), rectangle(0, 30, 9, 53)]
    segmentation = segmentation_of(
        image, masks, kind, finding=[BREAST, MASS, PECTORAL_MUSCLE], category=[ANATOMICAL, MASS, MASS]
    )
    reading = read(sent(segmentation), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(40, 30, 50, 41)]
    assert [(left.what, "SCT:" in left.reason) for left in reading.left_out] == [
        ("segment 1", True),
        ("segment 3", True),
    ]


def test_anatomy_coded_in_old_snomed_is_left_out_too(image: Dataset) -> None:
    segmentation = segmentation_of(image, rectangle(10, 5, 20, 9), finding=Code("T-04000", "SRT", "Breast"))
    assert read(sent(segmentation), image).lesions == ()


def test_a_segmentation_of_nothing_but_anatomy_is_an_empty_reading(image: Dataset) -> None:
    reading = read(sent(segmentation_of(image, rectangle(0, 0, 60, 20), finding=BREAST)), image)
    assert reading.lesions == () and len(reading.left_out) == 1


def test_a_segment_that_nobody_named_is_a_lesion_without_a_finding(image: Dataset) -> None:
    tissue = Code("85756007", "SCT", "Tissue")
    segmentation = segmentation_of(image, rectangle(10, 5, 20, 9), finding=tissue, category=tissue, tracking=False)
    (lesion,) = read(sent(segmentation), image).lesions
    assert lesion.finding is None
    assert (lesion.tracking_id, lesion.tracking_uid) == ("Lesion 1", None)


def test_laterality_comes_from_the_anatomic_region_modifier(image: Dataset) -> None:
    segmentation = segmentation_of(image, rectangle(10, 5, 20, 9))
    left = Dataset()
    left.CodeValue, left.CodingSchemeDesignator, left.CodeMeaning = "7771000", "SCT", "Left"
    segmentation.SegmentSequence[0].AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [left]
    (lesion,) = read(sent(segmentation), image).lesions
    assert lesion.laterality is not None and lesion.laterality.value == "7771000"


# --- frames and references ---


def test_a_segment_on_a_frame_of_a_stack_keeps_that_frame() -> None:
    stack = mammogram(ROWS, COLUMNS, frames=5)
    masks = np.zeros((5, ROWS, COLUMNS), np.uint8)
    masks[3] = rectangle(10, 5, 20, 9)
    (lesion,) = read(sent(segmentation_of(stack, [masks])), stack).lesions
    assert (lesion.frame, box(lesion.outline)) == (4, (5, 10, 9, 20))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_lesion_through_several_frames_is_one_lesion_where_it_is_largest(kind: str) -> None:
    stack = mammogram(ROWS, COLUMNS, frames=5)
    masks = np.zeros((5, ROWS, COLUMNS), np.uint8)
    masks[0] = rectangle(10, 5, 14, 9)
    masks[1] = rectangle(9, 4, 20, 15)
    masks[2] = rectangle(10, 5, 15, 9)
    masks[4] = rectangle(10, 5, 15, 9)  # the frame between is empty: another lesion
    masks[2] |= rectangle(40, 40, 45, 45)
    reading = read(sent(segmentation_of(stack, [masks], kind)), stack)
    assert [(lesion.frame, box(lesion.outline)) for lesion in reading.lesions] == [
        (2, (4, 9, 15, 20)),
        (3, (40, 40, 45, 45)),
        (5, (5, 10, 9, 15)),
    ]
    assert "2 more frames of one lesion" in reading.left_out[0].what


def without_derivation(segmentation: Dataset) -> Dataset:
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    return segmentation


def test_without_frame_sources_the_one_referenced_image_is_the_source(image: Dataset) -> None:
    segmentation = sent(without_derivation(segmentation_of(image, rectangle(10, 5, 20, 9))))
    assert lesion_references(segmentation) == References((image.SOPInstanceUID,), ())
    (lesion,) = read(segmentation, image).lesions
    assert lesion.image_uid == image.SOPInstanceUID


def test_sources_in_the_shared_functional_groups_are_found(image: Dataset) -> None:
    segmentation = segmentation_of(image, rectangle(10, 5, 20, 9))
    derivation = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    without_derivation(segmentation)
    segmentation.SharedFunctionalGroupsSequence[0].DerivationImageSequence = derivation
    del segmentation.ReferencedSeriesSequence
    assert lesion_references(sent(segmentation)) == References((image.SOPInstanceUID,), ())


@pytest.mark.parametrize("instances", [0, 2])
def test_without_frame_sources_no_image_is_guessed(image: Dataset, instances: int) -> None:
    segmentation = without_derivation(segmentation_of(image, rectangle(10, 5, 20, 9)))
    series = segmentation.ReferencedSeriesSequence[0]
    other = Dataset()
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = image.SOPClassUID, "1.2.3"
    series.ReferencedInstanceSequence = [series.ReferencedInstanceSequence[0], other][:instances]
    with pytest.raises(LesionError, match="names no source image"):
        lesion_references(sent(segmentation))


def test_references_are_found_without_pixel_data(image: Dataset) -> None:
    file = BytesIO()
    segmentation_of(image, rectangle(10, 5, 20, 9)).save_as(file, enforce_file_format=True)
    header = pydicom.dcmread(BytesIO(file.getvalue()), stop_before_pixels=True)
    assert lesion_references(header) == References((image.SOPInstanceUID,), ())
    with pytest.raises(LesionError, match="no Pixel Data"):
        read(header, image)


def test_one_segmentation_may_mark_several_images() -> None:
    first, second = mammogram(ROWS, COLUMNS), mammogram(ROWS, COLUMNS)
    # highdicom shares one item among frames until it is written and read
    segmentation = sent(segmentation_of(first, [rectangle(10, 5, 20, 9), rectangle(30, 40, 41, 50)]))
    source = segmentation.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = second.SOPInstanceUID
    assert lesion_references(segmentation) == References((first.SOPInstanceUID, second.SOPInstanceUID), ())
    reading = read(segmentation, first, second)
    assert [lesion.image_uid for lesion in reading.lesions] == [first.SOPInstanceUID, second.SOPInstanceUID]
    # one image that is not there costs its own lesions, not the others
    partial = read(segmentation, first)
    assert [lesion.image_uid for lesion in partial.lesions] == [first.SOPInstanceUID]
    assert [left.what for left in partial.left_out] == ["segment 2"]


# --- refusals ---


def test_a_matrix_that_does_not_fit_is_refused_with_both_sizes(image: Dataset) -> None:
    other = mammogram(ROWS, COLUMNS - 3, sop_instance_uid=image.SOPInstanceUID)
    with pytest.raises(LesionError, match=f"{ROWS} rows x {COLUMNS} columns.*{ROWS} rows x {COLUMNS - 3}"):
        read(sent(segmentation_of(image, rectangle(10, 5, 20, 9))), other)


def test_an_image_that_is_not_here_is_named(image: Dataset) -> None:
    with pytest.raises(LesionError, match=f"image {image.SOPInstanceUID} is not here"):
        read(sent(segmentation_of(image, rectangle(10, 5, 20, 9))))


def _drop(keyword: str) -> object:
    return lambda segmentation: delattr(segmentation, keyword)


def _several_sources(segmentation: Dataset) -> None:
    sources = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    other = copy.deepcopy(sources[0])
    other.ReferencedSOPInstanceUID = "1.2.3"
    sources.append(other)


def _frame_two(segmentation: Dataset) -> None:
    source = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedFrameNumber = 2


def _no_segment(segmentation: Dataset) -> None:
    del segmentation.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence


def _cut(segmentation: Dataset) -> None:
    segmentation.PixelData = segmentation.PixelData[:-100]


@pytest.mark.parametrize(
    ("bend", "kind", "reason"),
    [
        (_drop("SegmentationType"), "BINARY", "segmentation type None"),
        (_drop("SegmentSequence"), "BINARY", "describes no segment"),
        (_drop("MaximumFractionalValue"), "FRACTIONAL", "without Maximum Fractional Value"),
        (_several_sources, "BINARY", "several source images"),
        (_no_segment, "BINARY", "frame 1: it names no segment"),
        (_frame_two, "BINARY", "frame 2 is named of image"),
        (_cut, "BINARY", "Pixel Data end before frame 1"),
        (_cut, "FRACTIONAL", "frame 1 of the segmentation cannot be decoded"),
        (_drop("PhotometricInterpretation"), "FRACTIONAL", "cannot be decoded"),
    ],
)
def test_unusable_segmentations_are_refused_with_a_reason(image: Dataset, bend: object, kind: str, reason: str) -> None:
    segmentation = segmentation_of(image, rectangle(10, 5, 20, 9), kind)
    bend(segmentation)  # type: ignore[operator]
    with pytest.raises(LesionError, match=reason):
        read(segmentation, image)


def test_an_empty_segment_is_left_out(image: Dataset) -> None:
    segmentation = segmentation_of(image, [rectangle(10, 5, 20, 9), rectangle(30, 30, 35, 35)])
    bits = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8), bitorder="little")
    bits[ROWS * COLUMNS : 2 * ROWS * COLUMNS] = 0
    segmentation.PixelData = np.packbits(bits, bitorder="little").tobytes()
    reading = read(sent(segmentation), image)
    assert len(reading.lesions) == 1
    assert [(left.what, left.reason) for left in reading.left_out] == [("segment 2", "no pixel is marked")]


def test_a_label_that_no_segment_describes_is_left_out(image: Dataset) -> None:
    segmentation = segmentation_of(image, [rectangle(10, 5, 20, 9), rectangle(30, 30, 35, 35)], "LABELMAP")
    del segmentation.SegmentSequence[2]
    reading = read(sent(segmentation), image)
    assert [box(lesion.outline) for lesion in reading.lesions] == [(5, 10, 9, 20)]
    assert [left.what for left in reading.left_out] == ["label 2"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["BINARY", "LABELMAP"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_reading_or_a_reason(kind: str, places: list[tuple[float, int]]) -> None:
    image = mammogram(20, 20, sop_instance_uid="1.2.3")
    file = BytesIO()
    segmentation_of(image, rectangle(3, 3, 9, 9, (20, 20)), kind).save_as(file, enforce_file_format=True)
    content = bytearray(file.getvalue())
    for share, value in places:
        content[400 + int(share * (len(content) - 401))] = value
    try:
        segmentation = pydicom.dcmread(BytesIO(content))
        assert segmentation.SOPInstanceUID
    except Exception:
        return  # not a readable file: refused before lesions are looked for
    try:
        if lesion_references(segmentation) is not None:
            read(segmentation, image)
    except LesionError as error:
        assert str(error)
