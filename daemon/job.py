"""One job, from the lesion object and its images to its reports in the outbox."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Row

from config.settings import Settings
from daemon.classifier import Classifier
from daemon.decode import DecoderPool
from daemon.errors import LesionError, ReportError
from daemon.ledger import Ledger, instances, jobs, outbox
from daemon.lesion import Lesion, LesionReading
from daemon.lesions import lesion_references, read_lesions
from daemon.reports import Algorithm, Predecessor, Result, build_report
from daemon.spool import Spool
from daemon.uids import derive_uid
from model.cut import Cut
from model.errors import ImageError
from model.roi import Roi

RETRY_AFTER_S = 30
MAX_INTERNAL_FAILURES = 3
CLASSIFY_LIMIT_S = 600

# What a report copies from the image: a correction there is worth a new report.
IDENTITY_KEYWORDS = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
)  # fmt: skip

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one job reads: the lesion object whole, the headers of its images, and where each image's file lies."""

    source: Dataset
    images: Mapping[str, Dataset]
    image_paths: Mapping[str, Path]
    segmentations: Mapping[str, Dataset]


class JobWorker:
    """Does jobs. Thread-safe: holds no state of its own; what a job came to stands in the ledger.

    `settings` is asked anew for each job, since they can be reloaded.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        ledger: Ledger,
        spool: Spool,
        decoders: DecoderPool,
        classifier: Classifier,
        algorithm: Algorithm,
        bundle: str,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._decoders = decoders
        self._classifier = classifier
        self._algorithm = algorithm
        self._bundle = bundle

    def do(self, job: Row) -> None:
        """Work a claimed job to its next state; never raises for what the input or the network code does."""
        bound = log.bind(job=job.id, source_uid=job.source_uid)
        try:
            self._do(job, bound)
        except (LesionError, ImageError, ReportError) as error:
            with self._ledger.write() as connection:
                jobs.quarantine(connection, job, str(error), time.time())
            bound.warning("job quarantined", reason=str(error))
        except Exception as error:
            # A message may quote the data set: the ledger and the log get the kind and the place only.
            reason = f"internal failure: {type(error).__name__} at {_place(error)}"
            bound.error("job failed", reason=reason, attempt=job.attempts)
            with self._ledger.write() as connection:
                if job.attempts >= MAX_INTERNAL_FAILURES:
                    jobs.quarantine(connection, job, reason, time.time())
                else:
                    jobs.try_again(connection, job, reason, time.time() + RETRY_AFTER_S * job.attempts)

    def _do(self, job: Row, bound: structlog.stdlib.BoundLogger) -> None:
        begun = time.monotonic()
        inputs = load_inputs(self._ledger, self._spool, job)
        reading = read_lesions(inputs.source, inputs.images, inputs.segmentations, self._settings().lesions.not_lesions)
        for left_out in reading.left_out:
            bound.info("left out", what=left_out.what, reason=left_out.reason)
        if not reading.lesions:
            with self._ledger.write() as connection:
                jobs.done(connection, job, "nothing to classify", {"left_out": len(reading.left_out)}, time.time())
            bound.info("nothing to classify")
            return
        rois = self._cut(inputs, reading.lesions)
        results = self._classify(reading.lesions, rois)
        digest = reading_digest(reading, rois, inputs.images)
        reports = self._write_reports(job, inputs, reading, results, digest)
        with self._ledger.write() as connection:
            now = time.time()
            if jobs.sending(connection, job, _result(results, digest), now):
                new = outbox.put(connection, job.id, job.source_uid, reports, now)
                bound.info(
                    "job classified", lesions=len(results), reports=new, seconds=round(time.monotonic() - begun, 3)
                )
            else:
                bound.info("an input changed meanwhile, doing the job again")

    def _cut(self, inputs: Inputs, lesions: Sequence[Lesion]) -> list[Roi]:
        """One ROI per lesion, in order; each image is decoded once."""
        rois: dict[int, Roi] = {}
        for image_uid in dict.fromkeys(lesion.image_uid for lesion in lesions):
            chosen = [index for index, lesion in enumerate(lesions) if lesion.image_uid == image_uid]
            cuts = [Cut(lesions[index].frame, lesions[index].outline) for index in chosen]
            rois.update(zip(chosen, self._decoders.cut(inputs.image_paths[image_uid], cuts), strict=True))
        return [rois[index] for index in range(len(lesions))]

    def _classify(self, lesions: Sequence[Lesion], rois: Sequence[Roi]) -> list[Result]:
        futures = [self._classifier.submit(roi.pixels) for roi in rois]
        return [
            Result(lesion, future.result(CLASSIFY_LIMIT_S), roi)
            for lesion, roi, future in zip(lesions, rois, futures, strict=True)
        ]

    def _write_reports(
        self, job: Row, inputs: Inputs, reading: LesionReading, results: Sequence[Result], digest: str
    ) -> list[outbox.Report]:
        reports = []
        for kind in self._settings().reports.kinds:
            uid = derive_uid("report", job.source_uid, digest, self._bundle, kind)
            with self._ledger.read() as connection:
                before = outbox.newest_of(connection, job.source_uid, kind, other_than=uid)
            report = build_report(
                inputs.source,
                inputs.images,
                results,
                self._algorithm,
                sop_instance_uid=uid,
                series_instance_uid=derive_uid("series", uid),
                written_at=datetime.now(UTC),
                predecessor=before
                and Predecessor(before.sop_class_uid, before.sop_instance_uid, before.series_uid, before.study_uid),
                left_out=reading.left_out,
            )
            placed = self._spool.write_report(uid, _part10(report))
            reports.append(
                outbox.Report(
                    kind=kind,
                    sop_class_uid=str(report.SOPClassUID),
                    sop_instance_uid=uid,
                    study_uid=str(report.StudyInstanceUID),
                    series_uid=str(report.SeriesInstanceUID),
                    transfer_syntax_uid=str(report.file_meta.TransferSyntaxUID),
                    path=placed.path,
                    size=placed.size,
                )
            )
        return reports


def load_inputs(ledger: Ledger, spool: Spool, job: Row) -> Inputs:
    """Read what the job needs from the spool."""
    with ledger.read() as connection:
        source_row = instances.by_id(connection, job.instance_id)
        rows = instances.current(connection, jobs.needed_by(connection, job.id))
    source = dcmread(spool.absolute(source_row.path))
    references = lesion_references(source)
    if references is None:
        raise LesionError("the object marks no lesion")
    paths = {uid: spool.absolute(row.path) for uid, row in rows.items()}
    return Inputs(
        source=source,
        images={uid: dcmread(paths[uid], stop_before_pixels=True) for uid in references.image_uids},
        image_paths={uid: paths[uid] for uid in references.image_uids},
        segmentations={uid: dcmread(paths[uid]) for uid in references.segmentation_uids},
    )


def reading_digest(reading: LesionReading, rois: Sequence[Roi], images: Mapping[str, Dataset]) -> str:
    """Sha256 of all that was read: the same objects in another encoding give the same digest, so the same report UID."""
    read = {
        "lesions": [_lesion_facts(lesion) for lesion in reading.lesions],
        "left_out": [asdict(left_out) for left_out in reading.left_out],
        "rois": [hashlib.sha256(roi.pixels.tobytes()).hexdigest() for roi in rois],
        "identity": {
            uid: [str(header.get(keyword, "")) for keyword in IDENTITY_KEYWORDS] for uid, header in images.items()
        },
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _lesion_facts(lesion: Lesion) -> list[Any]:
    return [
        lesion.image_uid,
        lesion.frame,
        lesion.region.graphic_type,
        lesion.region.points.round(3).tolist(),
        lesion.tracking_id,
        lesion.tracking_uid,
        *(code and [code.value, code.scheme] for code in (lesion.finding, lesion.finding_site, lesion.laterality)),
    ]


def _result(results: Sequence[Result], digest: str) -> dict[str, Any]:
    """What the ledger keeps of a classified job, for `mammod jobs show`; nothing of the patient."""
    return {
        "digest": digest,
        "lesions": [
            {
                "image_uid": result.lesion.image_uid,
                "frame": result.lesion.frame,
                "box": [round(value, 1) for value in asdict(result.roi.box).values()],
                "probability": round(result.prediction.probability, 4),
                "malignant": result.prediction.malignant,
            }
            for result in results
        ],
    }


def _part10(report: Dataset) -> bytes:
    buffer = DicomBytesIO()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _place(error: Exception) -> str:
    frame = error.__traceback__
    place = "?"
    while frame is not None:
        code = frame.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place
