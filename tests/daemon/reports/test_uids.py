"""Derived UIDs are valid, stable and unambiguous."""

from __future__ import annotations

import hashlib
import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.uid import UID

from daemon.dicom.uids import (
    NAMESPACE,
    derive_uid,
    device_uid,
    is_valid_uid,
    report_series_uid,
    report_uid,
    tracking_uid,
)

PARTS = st.lists(st.text(max_size=20), max_size=5)


def test_a_derived_uid_is_a_version_5_uuid_under_2_25() -> None:
    # RFC 9562 5.5 by hand: SHA-1 of namespace and name, with version and variant set.
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + b"6:report3:1.2").digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    assert derive_uid("report", "1.2") == f"2.25.{int.from_bytes(digest, 'big')}"
    assert uuid.UUID(bytes=bytes(digest)).version == 5


def test_derived_uids_never_change() -> None:
    # Pinned: with other UIDs an archive would take every report that is sent again for a new one.
    assert derive_uid("a", "b") == "2.25.54023811674369494900863799609960665052"


@given(PARTS)
def test_every_derived_uid_is_valid(parts: list[str]) -> None:
    assert is_valid_uid(derive_uid(*parts))
    assert UID(derive_uid(*parts)).is_valid


@given(PARTS, PARTS)
def test_different_parts_give_different_uids(one: list[str], other: list[str]) -> None:
    assert (derive_uid(*one) == derive_uid(*other)) == (one == other)


def test_parts_are_not_simply_joined() -> None:
    assert len({derive_uid("ab", "c"), derive_uid("a", "bc"), derive_uid("abc"), derive_uid("2:ab1:c")}) == 4


def test_the_uids_of_one_job_differ_by_purpose_and_by_each_input() -> None:
    inputs = ("1.2.3", "reading", "bundle", "tid1500")
    made = {report_uid(*inputs), report_series_uid(*inputs), device_uid("bundle"), tracking_uid("1.2.3", 1)}
    for position in range(4):
        changed = list(inputs)
        changed[position] += "x"
        made |= {report_uid(*changed), report_series_uid(*changed)}
    assert len(made) == 12


@pytest.mark.parametrize("text", ["1", "0", "1.2.840.10008.1.1", "2.25.0", "1." + "9" * 62])
def test_valid(text: str) -> None:
    assert is_valid_uid(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".1", "1..2", "1.02", "00", "1.a", "1. 2", "1.2 ", "1.2\n", "1.2\0", "../1", "1.٣", "1" * 65],
)
def test_not_valid(text: str) -> None:
    assert not is_valid_uid(text)


@given(st.text(alphabet=string.digits + ".", max_size=70))
def test_valid_agrees_with_pydicom(text: str) -> None:
    assert is_valid_uid(text) == UID(text, validation_mode=config.IGNORE).is_valid
