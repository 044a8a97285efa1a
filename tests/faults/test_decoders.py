"""A decoding process that dies, hangs or eats memory costs the object it worked on and no other."""

from __future__ import annotations

import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from config import settings
from daemon.errors import DecoderKilled
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Manifest
from model.errors import ImageError
from model.roi_extraction import Cut
from tests.support import hostile_objects
from tests.support.fate import received
from tests.support.peers.programs import wait_until


@pytest.fixture(scope="module")
def pool(untrained: Path) -> Iterator[DecoderPool]:
    workers = settings.Workers.model_validate({"decode_timeout_s": 5, "decoder_memory": "1GiB"})
    manifest = Manifest.model_validate_json((untrained / "manifest.json").read_text())
    made = DecoderPool(2, manifest, workers)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.dcm"
    assert received(hostile_objects.encoded()[0], path) is None
    return path


CUT = [Cut(1, np.array([[20.0, 20.0]]))]


def test_process_that_dies_costs_its_object_only(pool: DecoderPool, good: Path) -> None:
    """While one object ends its process, each time, the other process goes on undisturbed."""
    reasons: list[str] = []

    def deadly() -> None:
        with pytest.raises(ImageError) as caught:
            pool._run(os.abort)
        reasons.append(str(caught.value))

    assert len(pool.cut(good, CUT)) == 1
    hostile = threading.Thread(target=deadly)
    hostile.start()
    while hostile.is_alive():
        assert len(pool.cut(good, CUT)) == 1
    assert reasons == ["the object took its decoding process down; check its pixel data with another program"]


def test_process_killed_from_outside_costs_nothing(pool: DecoderPool, good: Path) -> None:
    assert len(pool.cut(good, CUT)) == 1
    for decoder in pool._decoders:
        os.kill(decoder.pid, signal.SIGKILL)
    assert len(pool.cut(good, CUT)) == 1


def test_process_killed_each_time_is_not_held_against_the_object(pool: DecoderPool, good: Path) -> None:
    """As a job it is tried again later, and given up after some attempts."""
    with pytest.raises(DecoderKilled, match="killed 3 times"):
        pool._run(signal.raise_signal, signal.SIGKILL)
    assert len(pool.cut(good, CUT)) == 1


def half_an_answer(mark: Path) -> str:
    """The first time its process ends with a part of the answer on its way."""
    if mark.exists():
        return "done"
    mark.touch()
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, struct.pack("!i", 1000) + b"half")
    os._exit(1)


def test_process_that_dies_in_the_middle_of_its_answer_holds_nobody_up(pool: DecoderPool, tmp_path: Path) -> None:
    began = time.monotonic()
    assert pool._run(half_an_answer, tmp_path / "mark") == "done"
    assert (tmp_path / "mark").exists() and time.monotonic() - began < 60, "its end was seen, not waited for"


def die_twice(folder: Path) -> str:
    """Ends its process the first two times."""
    before = len(list(folder.iterdir()))
    if before < 2:
        (folder / str(before)).touch()
        os.abort()
    return "done"


def test_process_that_died_idle_costs_the_next_object_no_try(pool: DecoderPool, good: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    assert len(pool.cut(good, CUT)) == 1
    for decoder in pool._decoders:
        os.kill(decoder.pid, signal.SIGKILL)
    # They are gone before the object comes.
    wait_until(lambda: not pool.alive, "the processes gone", 30)
    assert pool._run(die_twice, marks) == "done"


def test_object_that_takes_too_long_is_given_up(pool: DecoderPool, good: Path) -> None:
    with pytest.raises(ImageError, match=r"over 5 s \(workers.decode_timeout_s\)"):
        pool._run(time.sleep, 600)
    assert len(pool.cut(good, CUT)) == 1


def test_object_that_takes_too_much_memory_is_given_up(pool: DecoderPool, good: Path) -> None:
    with pytest.raises(ImageError, match=r"more memory than 1.0GiB \(workers.decoder_memory\)"):
        pool._run(bytearray, 2 << 30)
    assert len(pool.cut(good, CUT)) == 1


def test_damaged_images_have_a_fate_and_the_next_is_cut(pool: DecoderPool, good: Path, tmp_path: Path) -> None:
    """Every codec with every kind of damage; some end the process (GDCM does), which is their own affair."""
    import random

    chance = random.Random(5)
    path, tried, refused = tmp_path / "damaged.dcm", 0, 0
    while tried < 60:
        damaged = chance.choice([hostile_objects.damaged, hostile_objects.altered])(chance)
        if not damaged.name.startswith("image") or received(damaged, path):
            continue
        tried += 1
        try:
            pool.cut(path, CUT)
        except ImageError as error:
            refused += 1
            assert str(error)
    assert refused > 5
    assert len(pool.cut(good, CUT)) == 1


def test_a_damaged_character_set_is_a_reason_of_its_own(pool: DecoderPool, good: Path, tmp_path: Path) -> None:
    """Found by the fuzz run: intake does not read an image that is no lesion object."""
    content = hostile_objects.encode(hostile_objects.image()).replace(b"ISO_IR 100", b"ISO_IR\x00100")
    path = tmp_path / "damaged.dcm"
    assert received(hostile_objects.Object("", content), path) is None
    with pytest.raises(ImageError, match="cannot be read"):
        pool.cut(path, CUT)
    assert len(pool.cut(good, CUT)) == 1
