"""`Lesion`: one marked place on one image frame, the contract between readers, crop and report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.3 section 8): value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, eq=False)
class Region:
    """A region as its source draws it: a graphic type of PS3.3 C.18.6.1.2 and its points.

    `points` is (N, 2) float64 of (column, row), DICOM SCOORD convention: (0, 0) is the top-left CORNER of the
    top-left pixel. CIRCLE is (centre, perimeter point); ELLIPSE is (ends of major axis, ends of minor axis).
    """

    graphic_type: str
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion of one lesion object on one frame of one image.

    `outline` is (N, 2) float64 of (column, row) in pixels, SCOORD convention (see `Region`), N >= 1; closed
    shapes do not repeat their first point. A POINT has one row. `region` is what the report draws, as in the
    source (for a segment the POLYLINE of its outline, first point repeated at the end). `frame` counts from
    1. `finding`, `finding_site` and `laterality` are None if the source does not give them.
    """

    source_uid: str
    image_uid: str
    frame: int
    outline: np.ndarray
    region: Region
    tracking_id: str | None = None
    tracking_uid: str | None = None
    finding: Code | None = None
    finding_site: Code | None = None
    laterality: Code | None = None
    labels: tuple[Code, ...] = field(default=())


@dataclass(frozen=True)
class LeftOut:
    """Content of a lesion object that was read and deliberately excluded, and why."""

    what: str
    reason: str


@dataclass(frozen=True, eq=False)
class LesionReading:
    """Lesions of one lesion object in the source's order, and what was left out, with reasons.

    `notes` are sentences for the report.
    """

    source_uid: str
    lesions: tuple[Lesion, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
