"""Malicious or damaged objects: each is refused or quarantined with its reason, in bounded memory.

`make soak` does the same to 100,000 more (tests/soak/fuzz.py).
"""

from __future__ import annotations

import random
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from config import settings
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import Manifest
from tests.support.fate import fate, lesions, received
from tests.support.hostile_objects import CORPUS, HEAVY, altered, damaged, encoded

HANG_LIMIT_S = 60.0
MEMORY = 700 << 20  # bytes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pool(untrained: Path) -> Iterator[DecoderPool]:
    workers = settings.Workers.model_validate({"decode_timeout_s": 120, "decoder_memory": "1GiB"})
    made = DecoderPool(1, Manifest.model_validate_json((untrained / "manifest.json").read_text()), workers)
    yield made
    made.stop()


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", [name for name in CORPUS if name not in HEAVY])
def test_corpus(name: str, tmp_path: Path, pool: DecoderPool) -> None:
    build, expected = CORPUS[name]
    tested = build()
    began, before = time.process_time(), peak_memory()
    came = fate(tested, tmp_path / "object.dcm", pool)
    assert re.match(f"(?:{expected})", came), came
    assert "Doe" not in came
    assert time.process_time() - began < HANG_LIMIT_S
    assert peak_memory() - before < MEMORY


def test_sound_objects_are_read(tmp_path: Path, pool: DecoderPool) -> None:
    """Or all that follows would show nothing."""
    for tested in encoded():
        came = fate(tested, tmp_path / "object.dcm", pool)
        assert came == "cut" if "image" in tested.name or "tomo" in tested.name else "lesions" in came, (
            tested.name,
            came,
        )


@given(st.integers(0, 2**32))
@hypothesis_settings(max_examples=300, deadline=None)
def test_damaged_objects_have_a_fate(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    tested = damaged(random.Random(seed))
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    assert received(tested, path) or lesions(tested, path) or path.exists()


@given(st.integers(0, 2**32))
@hypothesis_settings(max_examples=200, deadline=None)
def test_altered_objects_have_a_fate(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    tested = altered(random.Random(seed))
    path = tmp_path_factory.getbasetemp() / "altered.dcm"
    assert received(tested, path) or lesions(tested, path) or path.exists()
