"""The TID 1500 report on a lesion object without a result: nothing to classify, or the classification failed.

Its one measurement group is image-level (TID 1501) and gives the status of the analysis, without region or
number.
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from daemon.dicom.uids import tracking_uid
from daemon.reports import image_header
from daemon.reports.case import Case, Edition
from daemon.reports.charset import CharacterSet
from daemon.reports.sr_document import sr_document
from daemon.reports.statements import without_result_statements
from daemon.reports.tid1500 import SERIES_NUMBER, algorithm_identification, comment, measurement_report

KIND = "tid1500"


def build(case: Case, edition: Edition, failed: bool, reason: str) -> Dataset:
    """Return the report on a lesion object without results; the same arguments give the same bytes.

    Patient and study are those of the lesion object. `case.images` are the images that it names and that are
    here. `failed` says that there should have been a result, `reason` why there is none, without patient
    data.

    Raises:
        ReportError: the lesion object has no UID of its own, its series or its study.
    """
    header = image_header.patient_and_study(case.source)
    text = CharacterSet.encodable_with(header)
    patient, _issuer = image_header.patient_key(case.source)
    shown = {uid: image for uid, image in case.images.items() if image_header.patient_key(image)[0] == patient}
    status = codes.DCM.Failed if failed else codes.DCM.NotAttempted
    name = "failed" if failed else "nothing to classify"
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=tracking_uid(str(case.source.SOPInstanceUID), 0), identifier=f"Lesion object: {name}"
        ),
        algorithm_id=algorithm_identification(case.algorithm, edition.bundle, None, text),
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(codes.DCM.SummaryOfAnalyses, status)],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID) for image in shown.values()
        ]
        or None,
    )
    statements = without_result_statements(case.algorithm, failed, reason, case.left_out)
    group[0].ContentSequence.append(comment(statements[1], text))
    home = next(iter(shown.values()), case.source)
    made = sr_document(
        measurement_report(case, home=home, shown=shown, groups=[group], statements=statements, text=text),
        sop_class_uid=Comprehensive3DSRStorage,
        evidence=(case.source, *shown.values()),
        header=header,
        algorithm=case.algorithm,
        edition=edition,
        series_number=SERIES_NUMBER,
    )
    made.SeriesDescription = f"RESEARCH ONLY: no result: {name}"
    return made
