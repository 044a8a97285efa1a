"""Times of stages: what is told by whom, and how often."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from config.settings import Workers
from daemon.archive.outbox_sender import _until
from daemon.events import timings
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.events.timings import Stage, StageTiming, subscribed, timed
from daemon.receiving.listener import Listener
from daemon.workers.bundle_source import default_bundle_path
from daemon.workers.decoder_pool import DecoderPool
from model.bundle import load_bundle
from tests.support.scu import Accepted, encode, listener_settings, listening, mammogram, request_association, store

BURNT_S = 0.2


def burn(seconds: float) -> float:
    """Use so much CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def test_waiting_takes_time_and_working_takes_cpu_and_a_failure_is_told_too() -> None:
    heard: list[StageTiming] = []
    with subscribed(heard.append):
        with pytest.raises(ValueError), timed(Stage.DECODE):
            time.sleep(BURNT_S)
            raise ValueError
        with timed(Stage.REPORT):
            burn(BURNT_S)
        timings.used(Stage.CLASSIFY, 3.0)
    with timed(Stage.SEND):
        pass
    waited, worked, used = heard
    assert waited.stage is Stage.DECODE and (waited.seconds or 0) >= BURNT_S > 2 * waited.cpu_seconds
    assert worked.stage is Stage.REPORT and (worked.seconds or 0) >= worked.cpu_seconds >= BURNT_S
    assert used == StageTiming(Stage.CLASSIFY, None, 3.0)


def test_receiving_is_told_once_for_each_instance_whatever_the_answer(tmp_path: Path) -> None:
    heard: list[StageTiming] = []
    accepted = Accepted(tmp_path / "accepted")
    with (
        listening(Listener(listener_settings(), tmp_path / "incoming", accepted)) as listener,
        subscribed(heard.append),
    ):
        association = request_association(listener.port)
        dataset = mammogram(size=2048)
        began = time.monotonic()
        assert store(association, encode(dataset), dataset.SOPInstanceUID).Status == 0x0000
        assert store(association, b"no data set at all", dataset.SOPInstanceUID).Status >> 12 == 0xC
        took = time.monotonic() - began
        association.release()
    assert [one.stage for one in heard] == [Stage.RECEIVE] * 2
    assert all(one.seconds is not None and 0 < one.seconds <= took and one.cpu_seconds > 0 for one in heard)


def test_a_decoder_s_cpu_is_told_by_the_service() -> None:
    manifest = load_bundle(default_bundle_path()).manifest
    pool = DecoderPool(1, manifest, Workers())
    heard: list[StageTiming] = []
    try:
        with subscribed(heard.append):
            assert pool._run(burn, BURNT_S) == BURNT_S
    finally:
        pool.stop()
    (told,) = heard
    assert told.stage is Stage.DECODE and told.seconds is None and BURNT_S <= told.cpu_seconds < 10 * BURNT_S


def test_sending_is_told_for_each_report_and_not_for_the_end_of_the_association() -> None:
    heard: list[StageTiming] = []
    outcomes = [StoreOutcome(str(number), StoreOutcomeKind.RETRY, None, "") for number in range(3)]
    with subscribed(heard.append):
        assert list(_until(iter(outcomes), lambda: False)) == outcomes
    assert [one.stage for one in heard] == [Stage.SEND] * 3
