"""Kinds of report: chosen by name, each with one object or several, none in the way of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydicom.dataset import Dataset

from config.errors import ConfigurationError
from config.loading import load_settings
from config.settings import Reports
from daemon.errors import ReportError
from daemon.jobs.pipeline import Classified, Inputs, Pipeline
from daemon.lesions.lesion import LesionReading
from daemon.reports import registry
from daemon.reports.case import Case, Edition, Predecessor
from tests.support import report_objects as b


def pipeline() -> Pipeline:
    unused: Any = None
    return Pipeline(unused, unused, b.TRAINED, b.BUNDLE)


def classified() -> tuple[Inputs, Classified]:
    image = b.mammogram()
    source = b.source()
    inputs = Inputs(source, {str(image.SOPInstanceUID): image}, {}, Path("unused"), {})
    result = b.result(b.lesion(image))
    return inputs, Classified(LesionReading(inputs.source_uid, (result.lesion,)), (result,), "digest")


def per_image(case: Case, edition: Edition) -> Sequence[Dataset]:
    """A kind that makes one object for each image, and for good measure one more."""
    made = []
    for part in (*case.images, "another"):
        item = Dataset()
        item.SOPInstanceUID, item.SeriesInstanceUID = edition.sop_instance_uid(part), edition.series_instance_uid(part)
        made.append(item)
    return made


def impossible(_case: Case, edition: Edition) -> Sequence[Dataset]:
    raise ReportError(f"{edition.kind} needs what the image does not say")


def test_the_settings_name_what_can_be_built_and_nothing_else() -> None:
    (named, _ellipsis) = get_args(Reports.model_fields["kinds"].annotation)
    assert set(get_args(named)) == set(registry.KINDS)


@pytest.mark.parametrize("value", ['["no-such-kind"]', '["tid1500", "tid1500"]', "[]"])
def test_the_settings_refuse_unknown_repeated_and_no_kinds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMMOD_REPORTS__KINDS", value)
    with pytest.raises(ConfigurationError, match=r"reports\.kinds"):
        load_settings()


def test_a_kind_may_make_several_objects_each_with_uids_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KINDS", {"tid1500": registry.KINDS["tid1500"], "many": per_image})
    monkeypatch.setattr("daemon.jobs.pipeline.KINDS", registry.KINDS)
    inputs, result = classified()
    first, again = (pipeline().write(inputs, result, ["tid1500", "many"], lambda _: ()) for _ in range(2))
    assert [item.kind for item in first.written] == ["tid1500", "many", "many"]
    uids = [item.sop_instance_uid for item in first.written]
    assert len(set(uids) | {str(item.report.SeriesInstanceUID) for item in first.written}) == 6
    assert uids == [item.sop_instance_uid for item in again.written], "the same work gives the same UIDs"
    other = pipeline().write(inputs, replace(result, digest="other"), ["many"], lambda _: ())
    assert not set(uids) & {item.sop_instance_uid for item in other.written}


@pytest.mark.parametrize("kind", ["tid1500", "gsps"])
def test_a_reading_that_comes_back_is_a_new_report_on_top_of_the_newest(kind: str) -> None:
    inputs, result = classified()
    earlier: list[Predecessor] = []
    told = []  # what each report names as its predecessor

    def write(digest: str) -> str:
        (made,) = pipeline().write(inputs, replace(result, digest=digest), [kind], lambda _: list(earlier)).written
        report = made.report
        row = (str(report.SOPClassUID), made.sop_instance_uid, str(report.SeriesInstanceUID), "1.2")
        if row not in earlier:
            earlier.append(row)
        if (sequence := report.get("PredecessorDocumentsSequence")) is not None:
            named = sequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
            told.append(str(named.ReferencedSOPInstanceUID))
        return made.sop_instance_uid

    uids = []
    for digest in ("outline", "edited", "outline", "edited", "outline"):
        uids.append(write(digest))
        kept = list(told)
        assert [write(digest), write(digest)] == [uids[-1]] * 2, "the same work gives the same report"
        del told[len(kept) :]
    assert len(set(uids)) == 5 and [row[1] for row in earlier] == uids
    assert told == (uids[:-1] if kind == "tid1500" else [])


def test_a_kind_that_cannot_be_made_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.jobs.pipeline.KINDS", {"no": impossible, "many": per_image, "neither": impossible})
    inputs, result = classified()
    made = pipeline().write(inputs, result, ["no", "many"], lambda _: ())
    assert [item.kind for item in made.written] == ["many", "many"]
    assert made.refused == {"no": "no needs what the image does not say"}
    with pytest.raises(ReportError, match=r"no needs .*; neither needs"):
        pipeline().write(inputs, result, ["no", "neither"], lambda _: ())
