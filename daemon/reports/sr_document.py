"""A structured report around its content tree (PS3.3 A.35): the header that every SR of ours has."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset
from pydicom.uid import UID

from daemon.errors import ReportError
from daemon.reports.base_object import new_object
from daemon.reports.case import Algorithm, Edition, Predecessor


def sr_document(
    root: Dataset,
    *,
    sop_class_uid: UID,
    evidence: Iterable[Dataset],
    header: Dataset,
    algorithm: Algorithm,
    edition: Edition,
    series_number: int,
) -> Dataset:
    """Return the document with `root` as its root container, marked as research, preliminary and unverified.

    `evidence` are the images and the lesion object (headers), the first one in the report's own study.
    `header` is what `image_header.patient_and_study` returns.

    Raises:
        ReportError: an instance of the evidence lacks a UID.
    """
    made = new_object(
        header, algorithm, edition, sop_class_uid=sop_class_uid, modality="SR", series_number=series_number
    )
    made.ContentDate, made.ContentTime = made.SeriesDate, made.SeriesTime
    made.ReferencedPerformedProcedureStepSequence = []
    made.CompletionFlag = "COMPLETE"
    made.PreliminaryFlag = "PRELIMINARY"
    made.VerificationFlag = "UNVERIFIED"
    made.ContentQualification = "RESEARCH"
    made.PerformedProcedureCodeSequence = []
    _put_evidence(made, evidence)
    if edition.predecessor is not None:
        made.PredecessorDocumentsSequence = [_predecessor(edition.predecessor)]
    for element in root:
        made[element.tag] = element
    return made


def _put_evidence(made: Dataset, evidence: Iterable[Dataset]) -> None:
    """Put the first study into Current Requested Procedure Evidence, others into Pertinent Other Evidence."""
    studies: dict[str, dict[str, dict[str, str]]] = {}
    for instance in evidence:
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not instance.get(keyword):
                raise ReportError(f"an image or lesion object has no {keyword}; without it no report can refer to it")
        series = studies.setdefault(instance.StudyInstanceUID, {}).setdefault(instance.SeriesInstanceUID, {})
        series[instance.SOPInstanceUID] = instance.SOPClassUID
    own, *others = (_study(uid, series) for uid, series in studies.items())
    made.StudyInstanceUID = own.StudyInstanceUID
    made.CurrentRequestedProcedureEvidenceSequence = [own]
    if others:
        made.PertinentOtherEvidenceSequence = others


def _predecessor(predecessor: Predecessor) -> Dataset:
    sop_class_uid, sop_instance_uid, series_uid, study_uid = predecessor
    return _study(study_uid, {series_uid: {sop_instance_uid: sop_class_uid}})


def _study(study_uid: str, series: dict[str, dict[str, str]]) -> Dataset:
    """Return an item of the Hierarchical SOP Instance Reference macro (PS3.3 C.17.2.1)."""
    study = Dataset()
    study.StudyInstanceUID = study_uid
    study.ReferencedSeriesSequence = []
    for series_uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        item.ReferencedSOPSequence = []
        for uid, sop_class_uid in instances.items():
            reference = Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class_uid, uid
            item.ReferencedSOPSequence.append(reference)
        study.ReferencedSeriesSequence.append(item)
    return study
