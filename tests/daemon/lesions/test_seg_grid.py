"""Segmentations on another grid than their image, against masks whose place on the image is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.errors import LesionError
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import read_lesions
from tests.support.lesion_objects import mammogram, segmentation_of

ROWS, COLUMNS = 200, 160


def read(segmentation: Dataset, image: Dataset, **chosen: object) -> LesionReading:
    return read_lesions(segmentation, {str(image.SOPInstanceUID): image}, {}, Lesions(**chosen))


def boxes(reading: LesionReading) -> list[list[float]]:
    return [[*lesion.outline.min(axis=0), *lesion.outline.max(axis=0)] for lesion in reading.lesions]


def small(image: Dataset, rows: int, columns: int, marked: tuple[slice, slice], kind: str = "BINARY") -> Dataset:
    """Return a SEG of `rows` x `columns` that names `image`; highdicom makes it on an image of equal size."""
    mask = np.zeros((rows, columns), np.uint8)
    mask[marked] = 1
    own = mammogram(rows, columns, sop_instance_uid=image.SOPInstanceUID, study_instance_uid=image.StudyInstanceUID)
    return copy.deepcopy(segmentation_of(own, mask, kind))


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_scaled_segmentation_is_scaled_to_its_image_if_a_setting_allows_it(kind: str) -> None:
    image = mammogram(ROWS, COLUMNS)
    segmentation = small(image, ROWS // 4, COLUMNS // 4, (slice(5, 12), slice(3, 8)), kind)
    with pytest.raises(LesionError, match=r"50 rows x 40 columns.*200 rows x 160.*scale_segmentations"):
        read(segmentation, image)
    reading = read(segmentation, image, scale_segmentations=True)
    assert boxes(reading) == [[12, 20, 32, 48]]
    assert "scaled to its image" in reading.notes[0]


def test_another_aspect_ratio_is_never_scaled() -> None:
    image = mammogram(ROWS, COLUMNS)
    segmentation = small(image, 50, 50, (slice(5, 12), slice(3, 8)))
    with pytest.raises(LesionError, match="aspect ratio"):
        read(segmentation, image, scale_segmentations=True)


def place(dataset: Dataset, position: list[float], spacing: list[float]) -> None:
    """Where a frame lies: x runs along the columns and y along the rows."""
    group = dataset.SharedFunctionalGroupsSequence[0]
    plane, orientation, measures = Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient, orientation.ImageOrientationPatient = position, [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = spacing
    group.PlanePositionSequence, group.PlaneOrientationSequence = [plane], [orientation]
    group.PixelMeasuresSequence = [measures]
    for own in dataset.PerFrameFunctionalGroupsSequence:
        if "PlanePositionSequence" in own:
            del own.PlanePositionSequence


def on_image(image: Dataset) -> None:
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]


def test_a_cropped_segmentation_lies_where_its_position_says() -> None:
    image = mammogram(ROWS, COLUMNS)  # pixels of 0.1 mm
    on_image(image)
    segmentation = small(image, 60, 50, (slice(5, 12), slice(3, 8)))
    place(segmentation, [2.0, 3.0, 0], [0.1, 0.1])  # the crop begins at column 20, row 30
    assert boxes(read(segmentation, image)) == [[23, 35, 28, 42]]


def test_a_coarser_padded_segmentation_lies_where_position_and_spacing_say() -> None:
    image = mammogram(ROWS, COLUMNS)
    on_image(image)
    segmentation = small(image, 130, 120, (slice(20, 30), slice(12, 20)))
    # Pixels of two by two image pixels; ten of them of padding at the left and the top.
    place(segmentation, [-2.0 + 0.05, -2.0 + 0.05, 0], [0.2, 0.2])
    (found,) = boxes(read(segmentation, image))
    assert np.abs(np.array(found) - [4, 20, 20, 40]).max() <= 1


def test_another_orientation_tells_nothing() -> None:
    image = mammogram(ROWS, COLUMNS)
    on_image(image)
    segmentation = small(image, 60, 50, (slice(5, 12), slice(3, 8)))
    place(segmentation, [2.0, 3.0, 0], [0.1, 0.1])
    image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    with pytest.raises(LesionError, match="expected the same pixel grid"):
        read(segmentation, image)
