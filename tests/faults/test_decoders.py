"""An image that takes the decoding process down costs itself, and not the images that wait beside it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from daemon import decode
from daemon.decode import DecoderPool
from model.errors import ImageError
from tests.faults import decoding
from tests.peers.programs import wait_until


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(decode, "_cut_file", decoding.cut)
    made = DecoderPool(1, None)  # type: ignore[arg-type]
    yield made
    made.stop()


def test_images_beside_a_poisonous_one_are_cut(pool: DecoderPool, tmp_path: Path) -> None:
    names = [f"image-{number}" for number in range(2)]
    with ThreadPoolExecutor(3) as threads:
        poison = threads.submit(pool.cut, tmp_path / "poison", ())
        wait_until(lambda: pool._executor._pending_work_items or pool._executor._processes, "the poison under way")
        others = [threads.submit(pool.cut, tmp_path / name, ()) for name in names]
        wait_until(lambda: len(pool._executor._pending_work_items) == 3, "all in one pool")
        (tmp_path / "go").touch()
        with pytest.raises(ImageError, match="takes decoding processes down"):
            poison.result(120)
        assert [future.result(120) for future in others] == [[name] for name in names]


def test_a_decoding_process_killed_from_outside_costs_nothing(pool: DecoderPool, tmp_path: Path) -> None:
    assert pool.cut(tmp_path / "first", ()) == ["first"]
    (victim,) = pool._executor._processes
    os.kill(victim, signal.SIGKILL)
    assert pool.cut(tmp_path / "second", ()) == ["second"]
