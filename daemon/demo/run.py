"""`mammod demo`: start the service, send the cases, wait for the reports, show the results."""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from config.errors import MammodError
from daemon.demo.archive import EmbeddedArchive, Stored
from daemon.demo.cases import KnownLesion, read_cases
from daemon.demo.lesion_objects import tracking_id, tracking_uid
from daemon.demo.page import write_page
from daemon.demo.results import Row, class_name, read_report, write_results
from daemon.demo.sending import CaseItems, Item, NotStored, prepare, send
from daemon.demo.service import AE_TITLE, DemoService

_EMBEDDED_AE_TITLE = "DEMOARCHIVE"
_MAX_SILENCE_S = 300  # without another lesion in a report
_POLL_S = 0.1
_RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis, screening or treatment."
_UNTRAINED = "The model is UNTRAINED: it has learned nothing; every probability and class here is meaningless."
_TRAINED = "Ten lesions are too few to measure accuracy. `mammod bundle show` prints how the model was evaluated."
_UNKNOWN = "The reports do not say whether the model was trained."


def run_demo(output: Path, archive: tuple[str, int] | None = None, aet: str = "ARCHIVE") -> int:
    """Run the demo into the folder `output`; return 0 if every lesion was reported, else 1.

    Without `archive`, an embedded archive stores the reports. A real archive at `archive` (host, port) with
    AE title `aet` first receives the images and lesion objects, so that its viewer can show the reports on
    them. Its reports count as stored once the service's ledger says so. Written: `sent/`, `reports/`,
    `results.json`, `index.html`, `service.log`; files of an earlier run are replaced.
    """
    console = Console()
    try:
        with _sigterm_raises():
            return _run(output.absolute(), archive, aet, console)
    except (MammodError, OSError) as error:
        console.print(Text(f"mammod demo failed: {error}", style="bold red"))
        return 1


def _run(output: Path, archive: tuple[str, int] | None, aet: str, console: Console) -> int:
    cases = read_cases()
    _clear(output)
    reports = output / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(console))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mammod-demo-")))
        with _step(progress, "Preparing eight mammograms and their lesion objects"):
            prepared = prepare(cases, output / "sent")
        items = [item for case in prepared for item in case.in_order]
        if archive is None:
            embedded = stack.enter_context(EmbeddedArchive(reports, _EMBEDDED_AE_TITLE))
            service = DemoService(folder, ("127.0.0.1", embedded.port, _EMBEDDED_AE_TITLE), output / "service.log")
            stored = embedded.stored
        else:
            with _step(progress, f"Storing images and lesion objects in {aet}"):
                _store_inputs(items, archive, aet, console)
            service = DemoService(folder, (*archive, aet), output / "service.log")
            stored = lambda: service.confirmed_reports(reports)  # noqa: E731
        stack.callback(service.stop)
        first = "" if service.is_converted else " (once: converting the model for this processor)"
        with _step(progress, f"Starting the service and warming up its classifier{first}"):
            service.start()
        sent_at = _send_all(items, service, progress)
        rows = _wait_for_rows(prepared, stored, service, sent_at, progress)
        failures = service.failures()
        exit_status = service.stop()
    write_results(output / "results.json", rows)
    notes = _notes(rows)
    write_page(output / "index.html", rows, notes)
    _show(console, output, rows, notes)
    problems = _missing(prepared, rows, failures)
    if exit_status != 0:
        problems.append(f"the service did not stop cleanly: exit status {exit_status}; see {output / 'service.log'}")
    for problem in problems:
        console.print(Text(problem, style="bold red"))
    return 1 if problems else 0


def _store_inputs(items: Sequence[Item], archive: tuple[str, int], aet: str, console: Console) -> None:
    """Store what the reports refer to; an archive that rejects it may still accept the reports."""
    try:
        send(items, archive, aet, lambda _item, _at: None)
    except NotStored as error:
        console.print(Text(f"Not all images and lesion objects are in the archive: {error}", style="yellow"))


def _send_all(items: Sequence[Item], service: DemoService, progress: Progress) -> dict[str, float]:
    """Send all items to the service; return when each was stored (seconds since 1970), by UID."""
    sent_at: dict[str, float] = {}
    task = progress.add_task(f"Objects sent to {AE_TITLE} on 127.0.0.1:{service.port}", total=len(items))

    def on_stored(item: Item, at: float) -> None:
        sent_at[item.uid] = at
        progress.advance(task)

    send(items, ("127.0.0.1", service.port), AE_TITLE, on_stored)
    return sent_at


def _wait_for_rows(
    prepared: Sequence[CaseItems],
    stored: Callable[[], dict[str, Stored]],
    service: DemoService,
    sent_at: dict[str, float],
    progress: Progress,
) -> list[Row]:
    """Return a row for each known lesion in a stored report, in the order of the cases.

    Wait until all are reported, no more can be, or `_MAX_SILENCE_S` passed without another.
    """
    wanted = {tracking_uid(lesion): (case, lesion) for case in prepared for lesion in case.case.lesions}
    task = progress.add_task("Lesions in stored reports", total=len(wanted))
    rows: dict[str, Row] = {}
    read: set[str] = set()
    silent_since = time.monotonic()
    while len(rows) < len(wanted) and time.monotonic() - silent_since < _MAX_SILENCE_S:
        service.check_running()
        failed = service.failures()
        arrived = stored()
        for uid in arrived.keys() - read:
            read.add(uid)
            for reported in read_report(arrived[uid].path):
                if reported.tracking_uid in wanted:
                    case, lesion = wanted[reported.tracking_uid]
                    seconds = arrived[uid].at - max(sent_at[item.uid] for item in case.in_order)
                    rows[reported.tracking_uid] = Row(case, lesion, reported, seconds)
                    silent_since = time.monotonic()
        progress.update(task, completed=len(rows))
        if all(case.lesion_object.uid in failed for uid, (case, _) in wanted.items() if uid not in rows):
            break
        time.sleep(_POLL_S)
    return [rows[uid] for uid in wanted if uid in rows]


def _missing(prepared: Sequence[CaseItems], rows: Sequence[Row], failures: dict[str, str]) -> list[str]:
    """Return a line for each lesion without a report, with the service's reason if there is one."""
    here = {row.name for row in rows}

    def line(case: CaseItems, lesion: KnownLesion) -> str:
        why = failures.get(case.lesion_object.uid, f"no report within {_MAX_SILENCE_S} s; see service.log")
        return f"no result for {tracking_id(case.case, lesion)}: {why}"

    return [
        line(case, lesion)
        for case in prepared
        for lesion in case.case.lesions
        if tracking_id(case.case, lesion) not in here
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader of the results must know, most important first."""
    trained = {row.reported.trained for row in rows}
    return [
        _RESEARCH_USE,
        *([_UNTRAINED] if False in trained else []),
        *([_UNKNOWN] if None in trained else []),
        *([_TRAINED] if True in trained else []),
    ]


def _show(console: Console, output: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    table = Table(title="Read back from the stored reports", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("image", "lesion", "marked by", "truth", "probability", "class", "seconds", "reports/"):
        table.add_column(heading, justify="right" if heading in ("lesion", "probability", "seconds") else "left")
    for row in rows:
        plan = row.sent.plan
        table.add_row(
            row.sent.case.name,
            str(row.lesion.number),
            f"{plan.shapes[0].kind}{', first' if plan.before_image else ''}",
            class_name(row.lesion.malignant),
            f"{100 * row.reported.probability:.2f} %",
            class_name(row.reported.malignant),
            f"{row.seconds:.2f}",
            row.reported.report.name,
        )
    console.print(table)
    console.print("Marked by: the object with the lesion's outline; first: sent before its image.")
    if rows:
        middle = statistics.median(row.seconds for row in rows)
        console.print(
            f"{len(rows)} lesions in reports; median {middle:.2f} s from the last object needed to the stored report."
        )
    for note in notes:
        console.print(Text(note, style="bold yellow"))
    console.print(Text(f"With pictures: {(output / 'index.html').as_uri()}"), soft_wrap=True)


def _clear(output: Path) -> None:
    """Delete the files of an earlier run and nothing else."""
    for path in (*output.glob("sent/*.dcm"), *output.glob("reports/*.dcm")):
        path.unlink()
    for name in ("results.json", "index.html", "service.log"):
        (output / name).unlink(missing_ok=True)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def _step(progress: Progress, label: str) -> Iterator[None]:
    """Show one line of progress for a step without countable parts."""
    task = progress.add_task(label, total=None)
    yield
    progress.update(task, total=1, completed=1)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the service is stopped and the spool deleted."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
