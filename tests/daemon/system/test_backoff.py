"""The pauses between attempts: doubling, a limit, and jitter between half and the whole."""

from __future__ import annotations

import pytest

from daemon.system.backoff import Backoff


@pytest.mark.parametrize(("attempt", "pause_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (10_000, 60.0)])
def test_pauses_double_up_to_the_limit(attempt: int, pause_s: float) -> None:
    assert Backoff(0.5, 60.0).pause_s(attempt) == pause_s


def test_jitter_is_between_half_and_the_whole() -> None:
    backoff = Backoff(10.0, 900.0)
    assert backoff.jittered_pause_s(3, jitter=lambda: 0.0) == 40.0
    assert backoff.jittered_pause_s(3, jitter=lambda: 1.0) == 80.0
    assert len({backoff.jittered_pause_s(3) for _ in range(20)}) > 10
