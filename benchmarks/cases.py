"""The list of cases, in the order in which they run."""

from __future__ import annotations

from benchmarks import classify, decode, growth, idle, ingest, small_objects, whole_way
from benchmarks.case import Case

CASES: tuple[Case, ...] = (
    *ingest.CASES,
    small_objects.CASE,
    idle.CASE,
    growth.CASE,
    decode.CASE,
    *classify.CASES,
    whole_way.CASE,
)
