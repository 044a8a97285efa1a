"""Reports as the archive would hold them after a demo, written by the report room from chosen
probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom

from daemon.demo.archive import Stored
from daemon.demo.lesion_objects import tracking_id, tracking_uid
from daemon.demo.sending import CaseItems
from daemon.dicom.uids import derive_uid
from daemon.lesions.lesion import Lesion, Region
from daemon.reports import tid1500
from daemon.reports.case import Algorithm, Case, Edition, Result
from model.prediction import Prediction
from model.roi import Box, Roi


def box_region(left: float, top: float, right: float, bottom: float) -> Region:
    return Region(
        "POLYLINE",
        np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], dtype=np.float64),
    )


def store_report(sent: CaseItems, probabilities: Sequence[float], trained: bool, folder: Path) -> tuple[str, Stored]:
    """One report with a probability for each lesion of the case, as a file in `folder`; malignant from 0.5
    on.
    """
    results = []
    for lesion, probability in zip(sent.case.lesions, probabilities, strict=True):
        region = box_region(lesion.left, lesion.top, lesion.right, lesion.bottom)
        marked = Lesion(
            source_uid=sent.lesion_object.uid,
            image_uid=sent.image.uid,
            frame=1,
            outline=region.points[:-1],
            region=region,
            tracking_id=tracking_id(sent.case, lesion),
            tracking_uid=tracking_uid(lesion),
        )
        prediction = Prediction(probability, probability >= 0.5, "test", "0" * 64)
        roi = Roi(np.zeros((299, 299), np.float32), Box(0, 0, 299, 299), 0.0, None, False)
        results.append(Result(marked, roi, prediction))
    algorithm = Algorithm("Xception-C", "0", derive_uid("test device"), trained, 0.5, "tests")
    case = Case(
        pydicom.dcmread(sent.lesion_object.path),
        {sent.image.uid: pydicom.dcmread(sent.image.path, stop_before_pixels=True)},
        results,
        algorithm,
    )
    written_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    (report,) = tid1500.build(case, Edition("tid1500", sent.lesion_object.uid, "reading", "0" * 64, written_at))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sent.case.name}.dcm"
    report.save_as(path, enforce_file_format=True)
    return str(report.SOPInstanceUID), Stored(path, time.time())
