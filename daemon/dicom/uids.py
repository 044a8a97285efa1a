"""UIDs that mammod derives: the same work done twice has the same UIDs (PS3.5 section 9, B.2)."""

from __future__ import annotations

import re
import uuid

# Every UID of mammod is a name in this namespace: changing it would give all reports new identities.
NAMESPACE = uuid.UUID("5b0a5a2e-6d0e-4b0c-8f0b-6d616d6d6f64")

_COMPONENT = r"(?:0|[1-9][0-9]*)"
_SAFE = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_VALID = re.compile(rf"{_COMPONENT}(?:\.{_COMPONENT})*", re.ASCII)


def derive_uid(*parts: str) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) from a version 5 UUID of `parts`: same parts, same UID, anywhere.

    Each part is preceded by its length, so that ("ab", "c") and ("a", "bc") are different names.
    """
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"


def is_valid_uid(text: str) -> bool:
    """Return whether `text` is a UID by PS3.5 section 9: up to 64 digits and dots, no leading zeros."""
    return len(text) <= 64 and _VALID.fullmatch(text) is not None


def is_safe_uid(text: str) -> bool:
    """Return whether `text` is safe to repeat in logs, queries and the ledger.

    That is a UID by PS3.5 section 9, or one with leading zeros, which some devices write.
    """
    return len(text) <= 64 and _SAFE.fullmatch(text) is not None


def device_uid(bundle_digest: str) -> str:
    """Return the Device UID (0018,1002) of the algorithm; a retrained model has another one."""
    return derive_uid("device", bundle_digest)


def report_uid(source_uid: str, reading_digest: str, bundle_digest: str, kind: str, part: str = "") -> str:
    """Return the SOP Instance UID of a report of `kind` on one reading of a lesion object with one bundle.

    `part` distinguishes the objects of a kind that writes several.
    """
    return derive_uid("report", source_uid, reading_digest, bundle_digest, kind, *filter(None, [part]))


def report_series_uid(source_uid: str, reading_digest: str, bundle_digest: str, kind: str, part: str = "") -> str:
    """Return that report's Series Instance UID: one series each, as viewers may show only its newest."""
    return derive_uid("series", source_uid, reading_digest, bundle_digest, kind, *filter(None, [part]))


def tracking_uid(source_uid: str, number: int) -> str:
    """Return the tracking UID of lesion `number` (from 1) if its source has none; equal for every bundle."""
    return derive_uid("tracking", source_uid, str(number))
