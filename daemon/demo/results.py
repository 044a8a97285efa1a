"""Read the demo's results back from the stored reports, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.sr.coding import Code

from config.errors import MammodError
from daemon.demo.cases import KnownLesion
from daemon.demo.lesion_objects import tracking_id
from daemon.demo.sending import CaseItems
from daemon.lesions.lesion import Region

_PROBABILITY_OF_CANCER = Code("111047", "DCM", "Probability of cancer")
_ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
_CLASSES = {("21594007", "SCT"): True, ("30807003", "SCT"): False}  # malignant, benign


@dataclass(frozen=True, eq=False)
class ReportedLesion:
    """One measurement group of a report; `probability` in 0..1, `trained` None if the report does not say."""

    report: Path
    report_uid: str
    tracking_uid: str
    image_uid: str
    region: Region
    probability: float
    malignant: bool
    trained: bool | None


@dataclass(frozen=True, eq=False)
class Row:
    """One known lesion and its reported result; `seconds` from last object needed to stored report."""

    sent: CaseItems
    lesion: KnownLesion
    reported: ReportedLesion
    seconds: float

    @property
    def name(self) -> str:
        """Return the lesion's Tracking ID."""
        return tracking_id(self.sent.case, self.lesion)


def read_report(path: Path) -> list[ReportedLesion]:
    """Return the lesions of one TID 1500 report.

    Raises:
        MammodError: a group lacks its region, its probability or its class.
    """
    document = hd.sr.srread(path)
    return [
        _reported(path, str(document.SOPInstanceUID), group)
        for group in document.content.get_planar_roi_measurement_groups()
    ]


def _reported(path: Path, report_uid: str, group: Any) -> ReportedLesion:
    probabilities = group.get_measurements(name=_PROBABILITY_OF_CANCER)
    evaluations = [evaluation.value for evaluation in group.get_qualitative_evaluations()]
    classes = [_CLASSES[key] for code in evaluations if (key := (code.value, code.scheme_designator)) in _CLASSES]
    region = group.roi
    if len(probabilities) != 1 or len(classes) != 1 or region is None:
        raise MammodError(
            f"report {path.name}: a group has {len(probabilities)} probabilities of cancer, {len(classes)} classes and "
            f"{'no' if region is None else 'a'} region; one of each was expected"
        )
    return ReportedLesion(
        report=path,
        report_uid=report_uid,
        tracking_uid=str(group.tracking_uid),
        image_uid=str(region.ContentSequence[0].referenced_sop_instance_uid),
        region=Region(region.graphic_type.value, np.asarray(region.value, dtype=np.float64)),
        probability=probabilities[0].value / 100,
        malignant=classes[0],
        trained=_trained(group),
    )


def _trained(group: Any) -> bool | None:
    """Return whether the bundle was trained, by the algorithm parameter `trained=yes` or `trained=NO`."""
    for item in group[0].ContentSequence:
        if item.name == _ALGORITHM_PARAMETERS and str(item.value).lower().startswith("trained="):
            return str(item.value).lower() == "trained=yes"
    return None


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write `results.json`, one object per lesion; coordinates are (column, row) as in SCOORD."""
    path.write_text(json.dumps([_as_json(row, path.parent) for row in rows], indent=2) + "\n", encoding="utf-8")


def _as_json(row: Row, folder: Path) -> dict[str, Any]:
    reported = row.reported
    return {
        "image": row.sent.case.name,
        "image_uid": reported.image_uid,
        "lesion": row.lesion.number,
        "source_uid": row.sent.lesion_object.uid,
        "source_kind": row.sent.plan.shapes[0].kind,
        "source_sent_before_image": row.sent.plan.before_image,
        "tracking_uid": reported.tracking_uid,
        "outline": {
            "graphic_type": reported.region.graphic_type,
            "points": reported.region.points.tolist(),
        },
        "truth": class_name(row.lesion.malignant),
        "probability": reported.probability,
        "class": class_name(reported.malignant),
        "seconds": round(row.seconds, 3),
        "report": reported.report.relative_to(folder).as_posix(),
        "report_uid": reported.report_uid,
        "trained": reported.trained,
        "research_use_only": True,
    }


def class_name(malignant: bool) -> str:
    """Return "malignant" or "benign"."""
    return "malignant" if malignant else "benign"
