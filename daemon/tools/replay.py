"""`mammod replay`: finished jobs once more under another bundle. A shadow: what comes of it is kept in a folder, never sent.

The ledger is only read, so that nothing here can ever reach the outbox. What is done stands in `replay.jsonl`, a line for each
job as soon as it is known: a replay that was ended goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import track

from config.errors import ConfigurationError, MammodError
from config.settings import Settings
from daemon.errors import ClassifierUnavailable, DecoderUnavailable
from daemon.jobs.job_runner import load_inputs, read_part10
from daemon.jobs.pipeline import Classified, MissingInstances, Pipeline
from daemon.ledger import Ledger
from daemon.ledger.job_query import JobQuery, select_jobs
from daemon.ledger.records import Job
from daemon.ledger.schema import JobState
from daemon.reports.registry import WITH_PICTURES
from daemon.storage.spool import Spool, open_spool
from daemon.tools.replay_report import write_report
from daemon.workers.bundle_source import algorithm
from daemon.workers.classifier_pool import ClassifierPool
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Bundle

STATES = (JobState.DONE, JobState.FAILED)  # those that have a result to compare with
LINES, FACTS, COPIES = "replay.jsonl", "replay.json", "copies"


@dataclass(frozen=True)
class Compared:
    """One lesion under both bundles."""

    image_uid: str
    frame: int
    old: float
    old_malignant: bool
    new: float
    new_malignant: bool


@dataclass(frozen=True)
class Replayed:
    """One job; where it could not be replayed, `reason` says why and there are no lesions."""

    job: int
    revision: int
    source_uid: str
    bundle: str
    lesions: list[Compared] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    reason: str | None = None


def replay(
    settings: Settings, ledger: Ledger, chosen: JobQuery, bundle: Bundle, out: Path, console: Console, *, gpu: bool
) -> int:
    """Classify the chosen finished jobs with `bundle`; reports, tables and a page go to `out`. Returns 0 when all could be.

    Raises:
        ConfigurationError: `out` cannot be written, is in use, or holds a replay under another bundle.
        ClassifierUnavailable, DecoderUnavailable: there is nothing to classify or decode with.
    """
    with _folder(out, bundle):
        known = {one.job: one for one in _read(out / LINES) if one.reason is None}
        rows = [row for page in select_jobs(ledger, chosen) for row in page]
        todo = [row for row in rows if row.id not in known or known[row.id].revision != row.revision]
        if len(todo) < len(rows):
            console.print(f"{len(rows) - len(todo)} of {len(rows)} jobs were replayed before", highlight=False)
        try:
            if todo:
                _be_polite(gpu)
                _do_all(todo, settings, ledger, bundle, out, console)
        finally:  # also of a replay that is ended by Ctrl-C
            wanted = {row.id for row in rows}
            results = {one.job: one for one in _read(out / LINES) if one.job in wanted}
            write_report(out, bundle, [results[number] for number in sorted(results)], console)
    if not rows:
        console.print("no finished job was chosen; `mammod jobs list --state done` shows what there is", style="red")
    return 0 if rows and all(one.reason is None for one in results.values()) else 1


def _be_polite(gpu: bool) -> None:
    """The service goes first: its processes get the CPU, and the GPU is left to it unless asked for."""
    os.nice(19)
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def _do_all(
    todo: Sequence[Job], settings: Settings, ledger: Ledger, bundle: Bundle, out: Path, console: Console
) -> None:
    count = max(1, (os.cpu_count() or 1) // 2)
    workers = settings.workers.model_copy(update={"count": 1})
    where = settings.spool
    if where.url is not None:
        # A bucket's copies in a folder of our own: the service removes its own, not knowing who else reads them.
        where = where.model_copy(update={"directory": out / COPIES})
    spool = open_spool(where)
    decoders = DecoderPool(count, bundle.manifest, workers)
    classifier = ClassifierPool(bundle, workers, settings.model.engine)
    threads = ThreadPoolExecutor(count)
    try:
        with console.status("warming the network up"):
            classifier.start()
        pipeline = Pipeline(decoders, classifier, algorithm(bundle), bundle.digest)

        def do(row: Job) -> Replayed:
            return _do(row, settings, ledger, spool, pipeline, out)

        no_bar = not console.is_terminal
        with (out / LINES).open("a+b") as lines:
            _end_last_line(lines)
            for one in track(threads.map(do, todo), "replaying", len(todo), console=console, disable=no_bar):
                lines.write(json.dumps(asdict(one)).encode() + b"\n")
                lines.flush()
    finally:
        threads.shutdown(cancel_futures=True)
        classifier.stop()
        decoders.stop()
        shutil.rmtree(out / COPIES, ignore_errors=True)


def _end_last_line(lines: BinaryIO) -> None:
    """A line that was cut off by the end of an earlier replay must not swallow the next one."""
    size = lines.seek(0, os.SEEK_END)
    lines.seek(max(0, size - 1))
    if lines.read(1) not in (b"", b"\n"):
        lines.write(b"\n")


def _do(row: Job, settings: Settings, ledger: Ledger, spool: Spool, pipeline: Pipeline, out: Path) -> Replayed:
    told = Replayed(row.id, row.revision, row.source_uid, row.bundle)
    before = (row.result or {}).get("lesions") or []
    if row.state not in STATES or not before:
        return replace(told, reason=f"it has no result to compare with: it is {row.state}" + _because(row.reason))
    try:
        pictures = not WITH_PICTURES.isdisjoint(settings.reports.kinds)
        with spool.reading() as file_of:
            inputs = load_inputs(ledger, file_of, row)
            classified = pipeline.classify(inputs, settings.lesions, pictures=pictures)
        compared = _compared(before, classified)
        # Another digest than the service would use: if this bundle goes live, its reports get UIDs of their own.
        shadow = replace(classified, digest=f"{classified.digest} replayed")
        made = pipeline.write(inputs, shadow, settings.reports.kinds, lambda _: ())
        names = []
        for number, item in enumerate(made.written):
            name = f"reports/job-{row.id}-{number + 1}-{item.kind}.dcm"
            (out / name).write_bytes(read_part10(item.report))
            names.append(name)
    except (ClassifierUnavailable, DecoderUnavailable):
        raise  # no other job would fare better
    except MissingInstances as error:
        return replace(told, reason=f"removed by retention since, or never here: {', '.join(error.uids)}")
    except FileNotFoundError:
        return replace(told, reason="a file of it is gone from the spool; `mammod check --deep` says which")
    except MammodError as error:
        return replace(told, reason=str(error))
    except OSError as error:
        raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}; make room, then go on") from error
    except Exception as error:  # damage of a kind that nothing foresaw costs this job only
        return replace(told, reason=f"internal failure: {type(error).__name__}")
    return replace(told, lesions=compared, reports=names)


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _compared(before: Sequence[dict[str, Any]], classified: Classified) -> list[Compared]:
    """Each lesion of the old result with the new one on the same frame, in the order in which both were read.

    Raises:
        MammodError: the lesion object is read otherwise today, so that there is nothing to compare.
    """
    places = [(result.lesion.image_uid, result.lesion.frame) for result in classified.results]
    if places != [(lesion["image_uid"], lesion["frame"]) for lesion in before]:
        raise MammodError(
            f"{len(places)} lesions are read from it today and there were {len(before)}, or on other images: "
            "[lesions] of the settings or mammod itself changed since"
        )
    return [
        Compared(
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
def _folder(out: Path, bundle: Bundle) -> Iterator[None]:
    """`out` for this replay alone: made where it is not there, refused where it is another bundle's or in use."""
    try:
        (out / "reports").mkdir(parents=True, exist_ok=True)
        lock = (out / FACTS).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--out {out} cannot be written: {error.strerror}; name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"--out {out}: another replay writes there; name another folder") from error
        lock.seek(0)
        known = lock.read()
        if not known:
            facts = {"bundle": bundle.digest, "name": bundle.manifest.name, "version": bundle.manifest.version}
            lock.write(json.dumps(facts | {"threshold": bundle.manifest.threshold}) + "\n")
            lock.flush()
        elif json.loads(known)["bundle"] != bundle.digest:
            raise ConfigurationError(
                f"--out {out} holds a replay under bundle {json.loads(known)['bundle'][:12]}, not {bundle.digest[:12]}; "
                "name another folder"
            )
        yield


def _read(file: Path) -> list[Replayed]:
    """What was done before; a last line that was cut off is done again."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            found.append(Replayed(**values | {"lesions": [Compared(**lesion) for lesion in values["lesions"]]}))
        except (ValueError, TypeError, KeyError):
            continue
    return found
