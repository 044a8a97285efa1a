"""Phantom studies for the viewers: each lesion is a bright shape in the pixels, so that a picture shows
whether the outline lies on it.

Coordinates are (column, row) in image pixels, (0, 0) the top-left corner of the first pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.support.lesion_objects import (
    ABNORMAL,
    ANATOMICAL,
    MASS,
    PECTORAL_MUSCLE,
    MarkedRegion,
    mammogram,
    measurement_report_of,
    segmentation_of,
)
from tests.support.services import save

ROWS, COLUMNS = 480, 360
GREY, BRIGHT = 1400, 4095
Points = Sequence[tuple[float, float]] | np.ndarray
Shape = tuple[str, Points]


@dataclass(frozen=True)
class Marked:
    """One lesion as it is marked: on which image, and its shape."""

    image_uid: str
    graphic_type: str
    points: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """Left, top, right and bottom edge of the pixels that it covers."""
        rows, columns = np.nonzero(mask_of(self.graphic_type, self.points))
        return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)


@dataclass(frozen=True)
class Source:
    """One lesion object with its images, as files, and the lesions that it marks, in its own order."""

    name: str
    uid: str
    files: Sequence[Path]
    lesions: Sequence[Marked]


BOX: Points = [(80, 120), (140, 120), (140, 170), (80, 170), (80, 120)]
OTHER_BOX: Points = [(60, 300), (110, 300), (110, 330), (60, 330), (60, 300)]
CIRCLE: Points = [(200, 230), (228, 230)]
ELLIPSE: Points = [(60, 250), (150, 250), (105, 225), (105, 275)]
TURNED: Points = [(70, 380), (130, 410), (94, 407), (106, 383)]  # half axes 33.5 and 13.4, at 26.6 degrees
FREE: Points = [(150 + 40 * np.cos(turn), 320 + 25 * np.sin(turn)) for turn in np.linspace(0, 2 * np.pi, 41)]
POINT: Points = [(200.5, 140.5)]


def make_exam(folder: Path) -> tuple[str, dict[str, Source]]:
    """An examination with several images and lesion objects, written into `folder`; its Study Instance
    UID.
    """
    study = generate_uid()
    marks: dict[str, tuple[str, Sequence[Sequence[Shape]], bool]] = {
        "SEG": ("SEG", [[("ELLIPSE", ELLIPSE), ("POLYLINE", BOX)]], True),
        "boxes": ("SR", [[("POLYLINE", BOX), ("POLYLINE", OTHER_BOX)]], True),
        "shapes": ("SR", [[("CIRCLE", CIRCLE), ("ELLIPSE", TURNED), ("POLYLINE", FREE), ("POINT", POINT)]], True),
        "CC and MLO": ("SR", [[("ELLIPSE", ELLIPSE), ("POLYLINE", BOX)], [("POLYLINE", OTHER_BOX)]], True),
        "SEG, no spacing": ("SEG", [[("POLYLINE", BOX)]], False),
        "SR, no spacing": ("SR", [[("CIRCLE", CIRCLE), ("POLYLINE", OTHER_BOX)]], False),
        "nothing": ("SEG of a muscle", [[("POLYLINE", BOX)]], True),
    }
    return study, {name: _source(name, folder / name, study, *how) for name, how in marks.items()}


def mask_of(graphic_type: str, points: Points) -> np.ndarray:
    """The pixels of (ROWS, COLUMNS) whose centre lies in the shape."""
    row, column = np.mgrid[:ROWS, :COLUMNS] + 0.5
    at = np.asarray(points, float)
    if graphic_type == "POINT":
        return (np.hypot(column - at[0, 0], row - at[0, 1]) < 0.6).astype(np.uint8)
    if graphic_type == "CIRCLE":
        return (np.hypot(column - at[0, 0], row - at[0, 1]) <= np.hypot(*(at[1] - at[0]))).astype(np.uint8)
    if graphic_type == "ELLIPSE":
        centre, major, minor = at.mean(axis=0), (at[1] - at[0]) / 2, (at[3] - at[2]) / 2
        along, across = (
            ((column - centre[0]) * axis[0] + (row - centre[1]) * axis[1]) / (axis @ axis) for axis in (major, minor)
        )
        return (along**2 + across**2 <= 1).astype(np.uint8)
    return _inside_polygon(at, column, row).astype(np.uint8)


def _inside_polygon(corners: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """By the number of edges that a ray from the pixel to the right crosses."""
    inside = np.zeros(column.shape, bool)
    for (x0, y0), (x1, y1) in pairwise(corners):
        if y0 != y1:
            crosses = (row < y0) != (row < y1)
            inside ^= crosses & (column < x0 + (row - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _image(shapes: Sequence[Shape], study: str, view: str, spacing: bool) -> Dataset:
    pixels = np.zeros((ROWS, COLUMNS), np.uint16)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    pixels[((row - ROWS / 2) / (ROWS * 0.48)) ** 2 + (column / (COLUMNS * 0.9)) ** 2 < 1] = GREY
    for shape in shapes:
        pixels[mask_of(*shape) == 1] = BRIGHT
    image = mammogram(pixels=pixels, study_instance_uid=study, view=view, patient_id="PHANTOM-1")
    image.PatientName = "Phantom^Viewer"
    if not spacing:
        for keyword in ("ImagerPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType"):
            delattr(image, keyword)
        del image.PixelSpacingCalibrationDescription
    return image


def _source(name: str, folder: Path, study: str, kind: str, views: Sequence[Sequence[Shape]], spacing: bool) -> Source:
    """`views` holds the shapes of each image: CC, then MLO."""
    images = [_image(shapes, study, view, spacing) for shapes, view in zip(views, ("CC", "MLO"), strict=False)]
    marked = [(image, *shape) for image, shapes in zip(images, views, strict=True) for shape in shapes]
    if kind.startswith("SEG"):
        said = (MASS, ABNORMAL) if kind == "SEG" else (PECTORAL_MUSCLE, ANATOMICAL)
        masks = [mask_of(*shape) for shape in views[0]]
        source = segmentation_of(images[0], masks, finding=said[0], category=said[1])
    else:
        regions = [
            MarkedRegion(graphic_type, points, tracking_id=f"lesion {number}", on=image)
            for number, (image, graphic_type, points) in enumerate(marked, start=1)
        ]
        source = measurement_report_of(images[0], regions)
    folder.mkdir(parents=True)
    files = [save(each, folder / f"{number}.dcm") for number, each in enumerate([*images, source])]
    lesions = [Marked(str(image.SOPInstanceUID), kind, np.asarray(points, float)) for image, kind, points in marked]
    return Source(name, str(source.SOPInstanceUID), files, lesions)
