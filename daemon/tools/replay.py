"""`mammod replay`: run finished jobs again under another bundle; results go to a folder and are never sent.

The ledger is only read, so nothing here can reach the outbox. Each result is appended to `replay.jsonl` at
once; an interrupted replay resumes from there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import track

from config.errors import ConfigurationError, MammodError
from config.settings import Settings
from daemon.errors import ClassifierUnavailable, DecoderUnavailable
from daemon.jobs.job_runner import load_inputs, read_part10
from daemon.jobs.pipeline import Classified, MissingInstances, Pipeline
from daemon.jobs.worker_pools import make_pools
from daemon.ledger import Ledger
from daemon.ledger.job_query import JobQuery, select_jobs
from daemon.ledger.records import Job
from daemon.ledger.schema import JobState
from daemon.reports.registry import WITH_PICTURES
from daemon.storage.spool import Spool, open_spool
from daemon.tools.replay_report import write_report
from daemon.tools.replay_result import LesionComparison, ReplayedJob, read_results
from model.bundle import Bundle

STATES = (JobState.DONE, JobState.FAILED)  # they have a result to compare with
RESULTS, FACTS, COPIES = "replay.jsonl", "replay.json", "copies"


def replay(
    *, settings: Settings, ledger: Ledger, query: JobQuery, bundle: Bundle, output: Path, console: Console, gpu: bool
) -> int:
    """Classify the selected finished jobs with `bundle`; write reports, tables and a page to `output`.

    Returns 0 if every selected job was replayed, else 1.

    Raises:
        ConfigurationError: `output` cannot be written, is in use, or holds a replay under another bundle.
        ClassifierUnavailable, DecoderUnavailable: there is nothing to classify or decode with.
    """
    with _exclusive_folder(output, bundle):
        known = {result.job: result for result in read_results(output / RESULTS) if result.reason is None}
        rows = [row for page in select_jobs(ledger, query) for row in page]
        todo = [row for row in rows if row.id not in known or known[row.id].revision != row.revision]
        if len(todo) < len(rows):
            console.print(f"{len(rows) - len(todo)} of {len(rows)} jobs were replayed earlier", highlight=False)
        try:
            if todo:
                _lower_priority(gpu)
                _replay_all(todo, settings=settings, ledger=ledger, bundle=bundle, output=output, console=console)
        finally:  # also after Ctrl-C
            wanted = {row.id for row in rows}
            results = {result.job: result for result in read_results(output / RESULTS) if result.job in wanted}
            write_report(output, bundle, [results[number] for number in sorted(results)], console)
    if not rows:
        console.print("no finished job was selected; list them: `mammod jobs list --state done`", style="red")
    return 0 if rows and all(result.reason is None for result in results.values()) else 1


def _lower_priority(gpu: bool) -> None:
    """Leave the CPU to the service, and the GPU unless `gpu`."""
    os.nice(19)
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def _replay_all(
    todo: Sequence[Job], *, settings: Settings, ledger: Ledger, bundle: Bundle, output: Path, console: Console
) -> None:
    count = max(1, (os.cpu_count() or 1) // 2)
    one_classifier = settings.workers.model_copy(update={"classifiers": 1})
    spool_settings = settings.spool
    if spool_settings.url is not None:
        # Cached copies in our own folder: the service evicts its own without knowing who else reads them.
        spool_settings = spool_settings.model_copy(update={"directory": output / COPIES})
    spool = open_spool(spool_settings)
    pools = make_pools(bundle, settings.model_copy(update={"workers": one_classifier}), decoders=count)
    threads = ThreadPoolExecutor(count)
    try:
        with console.status("warming up the classifier"):
            pools.start()

        def replay_one(row: Job) -> ReplayedJob:
            return _replay_job(
                row, settings=settings, ledger=ledger, spool=spool, pipeline=pools.pipeline, output=output
            )

        no_bar = not console.is_terminal
        with (output / RESULTS).open("a+b") as lines:
            _end_last_line(lines)
            results = threads.map(replay_one, todo)
            for result in track(results, "replaying", len(todo), console=console, disable=no_bar):
                lines.write(json.dumps(asdict(result)).encode() + b"\n")
                lines.flush()
    finally:
        threads.shutdown(cancel_futures=True)
        pools.stop()
        shutil.rmtree(output / COPIES, ignore_errors=True)


def _end_last_line(lines: BinaryIO) -> None:
    """End a truncated last line of an earlier replay, so that the next result gets a line of its own."""
    size = lines.seek(0, os.SEEK_END)
    lines.seek(max(0, size - 1))
    if lines.read(1) not in (b"", b"\n"):
        lines.write(b"\n")


def _replay_job(
    row: Job, *, settings: Settings, ledger: Ledger, spool: Spool, pipeline: Pipeline, output: Path
) -> ReplayedJob:
    job = ReplayedJob(row.id, row.revision, row.source_uid, row.bundle)
    before = (row.result or {}).get("lesions") or []
    if row.state not in STATES or not before:
        return replace(job, reason=f"it has no result to compare with: it is {row.state}" + _in_brackets(row.reason))
    try:
        pictures = not WITH_PICTURES.isdisjoint(settings.reports.kinds)
        with spool.reading() as file_of:
            inputs = load_inputs(ledger, file_of, row)
            classified = pipeline.classify(inputs, settings.lesions, pictures=pictures)
        compared = _compared(before, classified)
        # Not the digest the service would use: if this bundle goes live, its reports get other UIDs.
        shadow = replace(classified, digest=f"{classified.digest} replayed")
        made = pipeline.write(inputs, shadow, settings.reports.kinds, lambda _: ())
        names = []
        for number, item in enumerate(made.written):
            name = f"reports/job-{row.id}-{number + 1}-{item.kind}.dcm"
            (output / name).write_bytes(read_part10(item.report))
            names.append(name)
    except (ClassifierUnavailable, DecoderUnavailable):
        raise  # every other job would fail too
    except MissingInstances as error:
        return replace(job, reason=f"deleted by retention since, or never received: {', '.join(error.uids)}")
    except FileNotFoundError:
        return replace(job, reason="one of its files is missing from the spool; `mammod check --deep` says which")
    except MammodError as error:
        return replace(job, reason=str(error))
    except OSError as error:
        raise ConfigurationError(
            f"--output {output} cannot be written: {error.strerror}; free space, then run the same command again"
        ) from error
    except Exception as error:  # unforeseen damage costs this job only
        return replace(job, reason=f"internal failure: {type(error).__name__}")
    return replace(job, lesions=compared, reports=names)


def _in_brackets(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _compared(before: Sequence[dict[str, Any]], classified: Classified) -> list[LesionComparison]:
    """Pair each lesion of the old result with the new one on the same frame, in reading order.

    Raises:
        MammodError: the lesion object is read differently today, so there is nothing to compare.
    """
    frames = [(result.lesion.image_uid, result.lesion.frame) for result in classified.results]
    if frames != [(lesion["image_uid"], lesion["frame"]) for lesion in before]:
        raise MammodError(
            f"today {len(frames)} lesions are read from it, then there were {len(before)}, or they are on other images: "
            "[lesions] in the settings or mammod itself has changed"
        )
    return [
        LesionComparison(
            lesion["image_uid"],
            lesion["frame"],
            lesion["probability"],
            lesion["malignant"],
            round(result.prediction.probability, 4),
            result.prediction.malignant,
        )
        for lesion, result in zip(before, classified.results, strict=True)
    ]


@contextmanager
def _exclusive_folder(output: Path, bundle: Bundle) -> Iterator[None]:
    """Create and lock `output` for this replay; refuse it if another bundle wrote it or it is in use."""
    try:
        (output / "reports").mkdir(parents=True, exist_ok=True)
        lock = (output / FACTS).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"--output {output} cannot be written: {error.strerror}; name another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"--output {output}: another replay is writing there; name another folder"
            ) from error
        lock.seek(0)
        known = lock.read()
        if not known:
            facts = {"bundle": bundle.digest, "name": bundle.manifest.name, "version": bundle.manifest.version}
            lock.write(json.dumps(facts | {"threshold": bundle.manifest.threshold}) + "\n")
            lock.flush()
        elif json.loads(known)["bundle"] != bundle.digest:
            raise ConfigurationError(
                f"--output {output} holds a replay under bundle {json.loads(known)['bundle'][:12]}, not {bundle.digest[:12]}; "
                "name another folder"
            )
        yield
