"""Counters: what an event adds, and that a renamed metric is served under its old name too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.events.bus import DeletedForRoom, JobAttempted, JobOutcome
from daemon.monitoring.metrics import RENAMED, Metrics

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"


def series(metrics: Metrics) -> dict[tuple[str, ...], float]:
    text = metrics.render("text/plain")[0].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.record(JobAttempted(JobOutcome.CLASSIFIED, 2, 1.5))
    made.record(DeletedForRoom(jobs=3, instances=5, reports=7, bytes=11))
    return made


def test_attempts_and_evictions_are_counted_under_both_names(metrics: Metrics) -> None:
    served = series(metrics)
    for name in ("mammod_job_attempts_total", "mammod_jobs_worked_total"):
        assert served[name, "classified"] == 1 and served[name, "quarantined"] == 0
    for name in ("mammod_evicted_total", "mammod_removed_for_room_total"):
        assert [served[name, what] for what in ("jobs", "instances", "reports")] == [3, 5, 7]
    assert served["mammod_evicted_bytes_total",] == served["mammod_removed_for_room_bytes_total",] == 11


def test_the_changelog_has_every_renamed_metric() -> None:
    rows = re.findall(r"^\| `(mammod_\w+)_total` \| `(mammod_\w+)_total` \|", CHANGELOG.read_text(), re.MULTILINE)
    assert dict(rows) == RENAMED
