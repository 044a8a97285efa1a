"""The conformance statement says what the code does."""

from __future__ import annotations

from tests.docs.conformance import FILE, statement


def test_the_statement_is_that_of_the_code() -> None:
    assert FILE.read_text(encoding="utf-8") == statement(), "write it anew: python -m tests.docs.conformance"
