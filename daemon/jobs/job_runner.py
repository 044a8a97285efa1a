"""One claimed job, brought from its lesion object to its reports in the outbox."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from sqlalchemy import Connection

from config.errors import MammodError
from config.settings import Settings
from daemon.errors import (
    ClassifierUnavailable,
    DeadlyRoi,
    DecoderUnavailable,
    LesionError,
    ReportError,
    SpoolUnavailable,
)
from daemon.events import bus
from daemon.events.bus import JobAttempted, JobOutcome
from daemon.events.timings import Stage, counted, timed
from daemon.jobs.pipeline import Classified, Inputs, MissingInstances, Pipeline, Written, read_inputs, read_what_is_here
from daemon.ledger import UNAVAILABLE, Ledger, instances, job_claims, outbox, recording_a_file
from daemon.ledger.records import Instance, Job
from daemon.reports.case import Predecessor
from daemon.reports.registry import WITH_PICTURES
from daemon.storage.filesystem import DISK_FULL
from daemon.storage.spool import Spool
from model.errors import ImageError

RETRY_AFTER_S = 30
MAX_INTERNAL_FAILURES = 3
NOTHING = "nothing to classify"
MAX_LEFT_OUT_LINES = 50  # in the log; the report names all

log = structlog.get_logger()


class JobRunner:
    """Runs jobs. Thread-safe: it has no state, the outcome of a job is in the ledger.

    `settings` is called for each job, since the settings can be reloaded.
    """

    def __init__(self, settings: Callable[[], Settings], ledger: Ledger, spool: Spool, pipeline: Pipeline) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._pipeline = pipeline

    def run(self, job: Job) -> None:
        """Bring a claimed job to its next state; raise only if the ledger cannot be read or written."""
        bound = log.bind(job=job.id, source_uid=job.source_uid)
        try:
            self._run(job, bound)
        except MissingInstances as error:
            uids = error.uids
            self._ledger.transact(lambda connection: job_claims.needs_more(connection, job, uids, time.time()))
            bus.publish(JobAttempted(JobOutcome.INCOMPLETE))
            bound.info("job incomplete, waiting for instances", missing=error.uids)
        except (LesionError, ImageError, ReportError, DeadlyRoi) as error:
            self._quarantine(job, str(error), bound)
            bound.warning("job quarantined", reason=str(error))
        except UNAVAILABLE:
            raise  # the dispatcher runs the job again, and this attempt does not count
        except (ClassifierUnavailable, DecoderUnavailable, SpoolUnavailable) as error:
            self._postpone(job, str(error), bound)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                self._postpone(job, f"the spool cannot be written: {error.strerror}", bound)
                return
            # A message may quote the data set: the ledger and the log get only the type and the place.
            is_ours = isinstance(error, MammodError)
            reason = str(error) if is_ours else f"internal failure: {type(error).__name__} at {_place(error)}"
            bound.error("job failed", reason=reason, attempt=job.attempts)
            if job.attempts >= MAX_INTERNAL_FAILURES:
                self._quarantine(job, reason, bound)
            else:
                bus.publish(JobAttempted(JobOutcome.FAILED))
                self._ledger.transact(
                    lambda connection: job_claims.retry_at(
                        connection, job, reason, time.time() + RETRY_AFTER_S * job.attempts
                    )
                )

    def _postpone(self, job: Job, reason: str, bound: structlog.stdlib.BoundLogger) -> None:
        bound.warning("job postponed", reason=reason)
        bus.publish(JobAttempted(JobOutcome.POSTPONED))
        self._ledger.transact(
            lambda connection: job_claims.postpone(connection, job, reason, time.time() + RETRY_AFTER_S)
        )

    def _run(self, job: Job, bound: structlog.stdlib.BoundLogger) -> None:
        with self._spool.reading() as file_of:
            with counted(Stage.DECODE):
                inputs = load_inputs(self._ledger, file_of, job)
            self._work(job, inputs, bound)

    def _work(self, job: Job, inputs: Inputs, bound: structlog.stdlib.BoundLogger) -> None:
        started = time.monotonic()
        settings = self._settings()
        kinds = settings.reports.kinds
        classified = self._pipeline.classify(inputs, settings.lesions, pictures=not WITH_PICTURES.isdisjoint(kinds))
        for left_out in classified.reading.left_out[:MAX_LEFT_OUT_LINES]:
            bound.info("left out", what=left_out.what, reason=left_out.reason)
        if (more := len(classified.reading.left_out) - MAX_LEFT_OUT_LINES) > 0:
            bound.info("left out", what=f"{more} more")
        if not classified.results:
            self._finish_without_result(job, inputs, classified)
            bus.publish(JobAttempted(JobOutcome.NOTHING))
            bound.info(NOTHING)
            return
        with timed(Stage.REPORT):
            made = self._pipeline.write(inputs, classified, kinds, self._earlier(inputs.source_uid))
            reports = [self._store(report) for report in made.written]
        for kind, reason in made.refused.items():
            bound.warning("report kind not possible", kind=kind, reason=reason)
        result = _facts(classified) | ({"refused": dict(made.refused)} if made.refused else {})

        def transition(connection: Connection) -> int | None:
            recording_a_file(connection)
            now = time.time()
            current = job_claims.sending(connection, job, result, now)
            return outbox.put(connection, job.id, job.source_uid, reports, now) if current else None

        new = self._ledger.transact(transition)
        if new is not None:
            total_s = max(0.0, time.time() - (job.complete_at or time.time()))
            bus.publish(JobAttempted(JobOutcome.CLASSIFIED, len(classified.results), total_s))
            seconds = round(time.monotonic() - started, 3)
            bound.info("job classified", lesions=len(classified.results), new_reports=new, seconds=seconds)
        else:
            bus.publish(JobAttempted(JobOutcome.CHANGED))
            bound.info("job changed or taken by another node, result dropped")

    def _finish_without_result(self, job: Job, inputs: Inputs, classified: Classified) -> None:
        reports = []
        if self._settings().reports.on_nothing:
            written = self._pipeline.write_without_result(
                inputs,
                classified.digest,
                "what is marked is no lesion",
                self._earlier(job.source_uid),
                failed=False,
                left_out=classified.reading.left_out,
            )
            reports = [self._store(written)]

        def transition(connection: Connection) -> None:
            recording_a_file(connection)
            now = time.time()
            if not reports:
                job_claims.done(connection, job, NOTHING, _facts(classified), now)
            elif job_claims.sending(connection, job, _facts(classified), now, reason=NOTHING):
                outbox.put(connection, job.id, job.source_uid, reports, now)

        self._ledger.transact(transition)

    def _quarantine(self, job: Job, reason: str, bound: structlog.stdlib.BoundLogger) -> None:
        bus.publish(JobAttempted(JobOutcome.QUARANTINED))
        reports = []
        if self._settings().reports.on_failure:
            try:
                reports = [self._store(self._failure_report(job, reason))]
            except Exception as error:  # the lesion object may be too broken even to be referred to
                why = str(error) if isinstance(error, MammodError) else f"{type(error).__name__} at {_place(error)}"
                bound.warning("no report of the failure", reason=why)

        def transition(connection: Connection) -> None:
            recording_a_file(connection)
            now = time.time()
            if job_claims.quarantine(connection, job, reason, now) and reports:
                outbox.put(connection, job.id, job.source_uid, reports, now)

        self._ledger.transact(transition)

    def _failure_report(self, job: Job, reason: str) -> Written:
        """Return the report that a job failed; the same failure with the same content gives the same UID."""
        with self._spool.reading() as file_of:
            source, path_of = _files(self._ledger, file_of, job)
            inputs = read_what_is_here(file_of(source.path), path_of)
        digest = hashlib.sha256(f"failed {source.digest} {reason}".encode()).hexdigest()
        return self._pipeline.write_without_result(inputs, digest, reason, self._earlier(job.source_uid), failed=True)

    def _earlier(self, source_uid: str) -> Callable[[str], Sequence[Predecessor]]:
        def find(kind: str) -> Sequence[Predecessor]:
            with self._ledger.read() as connection:
                rows = outbox.of_source(connection, source_uid, kind)
            return [(row.sop_class_uid, row.sop_instance_uid, row.series_uid, row.study_uid) for row in rows]

        return find

    def _store(self, written: Written) -> outbox.Report:
        """Make a report durable and return its facts for the outbox.

        A report that the outbox knows stays as it was first written: the same UID is the same object.
        """
        report = written.report
        with self._ledger.read() as connection:
            known = outbox.by_uid(connection, written.sop_instance_uid)
        if known is not None and self._spool.has(known.path):
            return outbox.Report(**{name: getattr(known, name) for name in outbox.Report.__dataclass_fields__})
        stored = self._spool.write_report(written.sop_instance_uid, read_part10(report))
        return outbox.Report(
            kind=written.kind,
            sop_class_uid=str(report.SOPClassUID),
            sop_instance_uid=written.sop_instance_uid,
            study_uid=str(report.StudyInstanceUID),
            series_uid=str(report.SeriesInstanceUID),
            transfer_syntax_uid=str(report.file_meta.TransferSyntaxUID),
            path=stored.path,
            size=stored.size,
            digest=stored.digest,
        )


def load_inputs(ledger: Ledger, file_of: Callable[[str], Path], job: Job) -> Inputs:
    """Read what the job needs, each instance in its current version; `file_of` is from `Spool.reading`.

    Raises:
        MissingInstances, LesionError: see `daemon.jobs.pipeline.read_inputs`.
        SpoolUnavailable: a file is not here and cannot be fetched.
    """
    source, path_of = _files(ledger, file_of, job)
    return read_inputs(file_of(source.path), path_of)


def _files(ledger: Ledger, file_of: Callable[[str], Path], job: Job) -> tuple[Instance, Callable[[str], Path | None]]:
    """Return the row of the job's lesion object, and a function to find an instance's current file."""
    with ledger.read() as connection:
        source = instances.by_id(connection, job.instance_id)

    def path_of(uid: str) -> Path | None:
        with ledger.read() as connection:
            row = instances.current(connection, [uid]).get(uid)
        return file_of(row.path) if row else None

    return source, path_of


def read_part10(report: Dataset) -> bytes:
    """Return a report as a Part 10 file (PS3.10 section 7)."""
    buffer = DicomBytesIO()
    report.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _facts(classified: Classified) -> dict[str, Any]:
    """Return what the ledger keeps of a classified job, for `mammod jobs show`; nothing of the patient."""
    return {
        "digest": classified.digest,
        "left_out": len(classified.reading.left_out),
        "lesions": [
            {
                "image_uid": result.lesion.image_uid,
                "frame": result.lesion.frame,
                "box": [round(value, 1) for value in asdict(result.roi.box).values()],
                "probability": round(result.prediction.probability, 4),
                "malignant": result.prediction.malignant,
            }
            for result in classified.results
        ],
    }


def _place(error: Exception) -> str:
    """Return file and line of the place where an error was raised."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
