"""A hundred thousand hostile and broken objects, images and conversations; every one has a fate, and memory
stays bounded.

Byte and element damage to real objects of every kind that is read, the named corpus, nonsense on the wire,
and part of all that sent to a whole service. What raises something unforeseen is kept in the run's folder,
and belongs into the corpus.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import resource
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

from config import settings
from daemon.receiving.listener import Listener
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Manifest, untrained_bundle
from tests.soak.bounds import Bounds
from tests.support import hostile_objects, hostile_pdus
from tests.support.cases import make_case
from tests.support.fate import fate, lesions, pixels, received
from tests.support.hostile_objects import CORPUS, Object
from tests.support.peers.programs import wait_until
from tests.support.scu import Accepted, listener_settings, listening, request_association, store
from tests.support.services import service
from tests.support.wire import converse

DAMAGED, ALTERED, CONVERSATIONS, IMAGES, SENT = 97_000, 2_000, 1_500, 1_500, 500
LEAST = 100_000  # cases in all
MEMORY = 3 << 30  # bytes that this process and the service may hold at most
HANG_S = 60.0  # of the processor, for one object


def run(bounds: Bounds) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    bundle = bounds.folder / "bundle"
    untrained_bundle(bundle)
    figures: dict[str, Any] = {}
    cases = 0
    for name, part in (
        ("objects", _objects),
        ("conversations", _conversations),
        ("images", _images),
        ("corpus", _corpus),
        ("sent to a service", _service),
    ):
        began, used = time.monotonic(), time.process_time()
        outcomes = part(bounds, bundle, figures)
        cases += sum(outcomes.values())
        figures[name] = {"cases": sum(outcomes.values()), **dict(outcomes.most_common())}
        figures[f"{name}, seconds (of the processor)"] = (
            f"{time.monotonic() - began:.0f} ({time.process_time() - used:.0f})"
        )
        print(name, figures[name], flush=True)
    figures["cases"] = cases
    figures["peak memory of this process, MB"] = _peak() >> 20
    assert not list(bounds.folder.glob("defect-*")), f"defects, in {bounds.folder}: {figures}"
    assert _peak() < MEMORY, figures
    assert cases >= LEAST, f"time was up before {LEAST} cases: {figures}"
    return figures


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(came: str) -> str:
    """The outcome without what differs from case to case."""
    if re.match("[0-9A-F]{4} ", came):
        return f"refused {came[:4]}"
    return came.partition(":")[0] if came.startswith("quarantined") else "read" if "lesions" in came else came


def _tried(bounds: Bounds, tested: Object, seed: object, becomes: Callable[[Object, Path], str]) -> str:
    """What became of an object; a defect is kept with its seed."""
    used = time.process_time()
    try:
        came = becomes(tested, bounds.folder / "object.dcm")
    except Exception as error:
        came = f"DEFECT {type(error).__name__}"
        (bounds.folder / f"defect-{seed}.bin").write_bytes(tested.content)
        (bounds.folder / f"defect-{seed}.txt").write_text(f"{tested.name}, {tested.transfer_syntax}: {error!r}\n")
    if time.process_time() - used > HANG_S:
        (bounds.folder / f"defect-{seed}-slow.bin").write_bytes(tested.content)
    return came


def _corpus(bounds: Bounds, bundle: Path, figures: dict[str, Any]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    with _decoder(bundle) as pool:
        for number, (name, (build, expected)) in enumerate(CORPUS.items()):

            def becomes(tested: Object, path: Path, name: str = name, expected: str = expected) -> str:
                came = fate(tested, path, pool)
                assert re.match(f"(?:{expected})", came), f"{name}: {came}"
                return came

            outcomes[_kind(_tried(bounds, build(), f"corpus-{number}", becomes))] += 1
    figures["peak memory of a decoding process, MB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    return outcomes


@contextlib.contextmanager
def _decoder(bundle: Path) -> Iterator[DecoderPool]:
    """One of the service's own decoding processes, which codecs may take down."""
    workers = settings.Workers.model_validate({"decode_timeout_s": 120, "decoder_memory": "2GiB"})
    pool = DecoderPool(1, Manifest.model_validate_json((bundle / "manifest.json").read_text()), workers)
    try:
        yield pool
    finally:
        pool.stop()


def _objects(bounds: Bounds, _: Path, figures: dict[str, Any]) -> Counter[str]:
    def becomes(tested: Object, path: Path) -> str:
        return received(tested, path) or lesions(tested, path) or "an image"

    outcomes: Counter[str] = Counter()
    for number in range(DAMAGED + ALTERED):
        if bounds.left() < 60:
            break
        chance = random.Random(f"{bounds.seed} object {number}")
        tested = hostile_objects.damaged(chance) if number < DAMAGED else hostile_objects.altered(chance)
        outcomes[_kind(_tried(bounds, tested, f"object-{number}", becomes))] += 1
    return outcomes


def _images(bounds: Bounds, bundle: Path, figures: dict[str, Any]) -> Counter[str]:
    def becomes(_: Object, path: Path) -> str:
        came = pixels(path, pool)
        ended = re.search("took its decoding process down|kept a decoding process|needs more memory", came)
        return ended[0] if ended else came

    outcomes: Counter[str] = Counter()
    number = 0
    with _decoder(bundle) as pool:
        while outcomes.total() < IMAGES and bounds.left() > 60:
            number += 1
            chance = random.Random(f"{bounds.seed} image {number}")
            tested = hostile_objects.altered(chance) if chance.random() < 0.1 else hostile_objects.damaged(chance)
            if tested.name.startswith("image") and not received(tested, bounds.folder / "object.dcm"):
                outcomes[_kind(_tried(bounds, tested, f"image-{number}", becomes))] += 1
    return outcomes


def _conversations(bounds: Bounds, _: Path, figures: dict[str, Any]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    incoming = bounds.folder / "incoming"
    died: list[Any] = []
    hook, threading.excepthook = threading.excepthook, died.append
    with listening(Listener(listener_settings(), incoming, Accepted(bounds.folder / "accepted"))) as listener:
        before = threading.active_count()
        for number in range(CONVERSATIONS):
            if bounds.left() < 60:
                break
            outcomes[_answer(listener.port, hostile_pdus.talk(random.Random(f"{bounds.seed} talk {number}")))] += 1
        wait_until(lambda: not listener.served_here, "all associations have ended", 60)
        wait_until(lambda: threading.active_count() <= before, "their threads have ended", 60)
        assert not any(incoming.iterdir()), "a file was left"
    threading.excepthook = hook
    assert not died, f"a thread died: {died}"
    assert "NEVER ENDED" not in outcomes, outcomes
    return outcomes


def _answer(port: int, said: bytes) -> str:
    try:
        answer = converse(port, said, "127.0.0.2", 60)
    except TimeoutError:
        return "NEVER ENDED"
    kinds = {2: "accepted", 3: "rejected", 4: "data", 6: "released", 7: "aborted"}
    heard, at = [], 0
    while at + 6 <= len(answer):
        heard.append(kinds.get(answer[at], "?"))
        at += 6 + int.from_bytes(answer[at + 2 : at + 6], "big")
    return ", then ".join(dict.fromkeys(heard)) or "closed"


def _service(bounds: Bounds, bundle: Path, figures: dict[str, Any]) -> Counter[str]:
    """Damaged objects to a whole service, with what is good before and after."""
    outcomes: Counter[str] = Counter()
    with service(bounds.folder / "service", bundle) as running:
        running.start()
        assert running.process is not None
        for number in range(SENT):
            if bounds.left() < 60:
                break
            chance = random.Random(f"{bounds.seed} sent {number}")
            tested = hostile_objects.damaged(chance) if chance.random() < 0.5 else hostile_objects.altered(chance)
            outcomes[_send(running.port, tested)] += 1
        case = make_case(bounds.folder / "case")
        for dataset in (case.segmentation, case.image):
            assert _send(running.port, Object("good", hostile_objects.encode(dataset)), dataset) == "0000"
        uid = str(case.segmentation.SOPInstanceUID)
        wait_until(
            lambda: any(job.source_uid == uid and job.state in ("sending", "done") for job in running.jobs()),
            "the good object is classified",
            300,
        )
        assert running.process.poll() is None
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        figures["peak memory of the service, MB"] = int(status.split("VmHWM:")[1].split()[0]) >> 10
        figures["jobs of the service"] = dict(Counter(job.state for job in running.jobs()))
        assert figures["peak memory of the service, MB"] < MEMORY >> 20
        assert "Traceback" not in running.log
        told = [json.loads(line) for line in running.log.splitlines() if '"instance refused"' in line]
        assert all(event["reason"] for event in told)
        refused = Counter({kind: number for kind, number in outcomes.items() if kind not in ("0000", "no answer")})
        assert Counter(event["status"] for event in told) == refused, "every refusal is logged with its reason"
        assert all(job.reason for job in running.jobs() if job.state == "quarantined")
        assert not [name for name in running.files() if name.startswith("incoming/")]
        assert running.stop() == 0
    return outcomes


def _send(port: int, tested: Object, dataset: Any = None) -> str:
    """The status, for the class and UID of the sound object that it was."""
    if dataset is None:
        dataset = hostile_objects.real()[re.sub(" (damaged|altered|implicit)", "", tested.name)]
    sop_class = str(dataset.SOPClassUID)
    association = request_association(port, [(sop_class, [tested.transfer_syntax])])
    assert association.is_established
    answer = store(association, tested.content, str(dataset.SOPInstanceUID), sop_class)
    association.release()
    return f"{answer.Status:04X}" if "Status" in answer else "no answer"
