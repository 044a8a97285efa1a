"""UIDs that mammod makes: derived, so that the same work done twice carries the same UIDs (PS3.5 section 9, B.2)."""

from __future__ import annotations

import re
import uuid

# Every UID of mammod is a name in this namespace; changing it would give all reports new identities.
NAMESPACE = uuid.UUID("5b0a5a2e-6d0e-4b0c-8f0b-6d616d6d6f64")

_COMPONENT = r"(?:0|[1-9][0-9]*)"
_HARMLESS = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_VALID = re.compile(rf"{_COMPONENT}(?:\.{_COMPONENT})*", re.ASCII)


def derive_uid(*parts: str) -> str:
    """A UID under 2.25 (PS3.5 B.2) from a version 5 UUID of `parts`: same parts, same UID, on every machine.

    Each part is preceded by its length, so that ("ab", "c") and ("a", "bc") are different names.
    """
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"


def is_valid_uid(text: str) -> bool:
    """Whether `text` is a UID by PS3.5 section 9: at most 64 characters, digits and dots, no leading zeros."""
    return len(text) <= 64 and _VALID.fullmatch(text) is not None


def is_safe_uid(text: str) -> bool:
    """Whether `text` is a UID but for leading zeros, which some devices write: safe to repeat in logs, queries and the ledger."""
    return len(text) <= 64 and _HARMLESS.fullmatch(text) is not None


def device_uid(bundle_digest: str) -> str:
    """The Device UID (0018,1002) of the algorithm: another one as soon as the model was retrained."""
    return derive_uid("device", bundle_digest)


def report_uid(source_uid: str, reading_digest: str, bundle_digest: str, kind: str, part: str = "") -> str:
    """The SOP Instance UID of a report of `kind` on what was read from one lesion object with one bundle.

    `part` tells the objects of a kind apart that makes several.
    """
    return derive_uid("report", source_uid, reading_digest, bundle_digest, kind, *filter(None, [part]))


def report_series_uid(source_uid: str, reading_digest: str, bundle_digest: str, kind: str, part: str = "") -> str:
    """The Series Instance UID of that report: one series each, as viewers may show only the newest of a series."""
    return derive_uid("series", source_uid, reading_digest, bundle_digest, kind, *filter(None, [part]))


def tracking_uid(source_uid: str, number: int) -> str:
    """The tracking UID of lesion `number` (from 1) of a source that gives it none; the same for every bundle."""
    return derive_uid("tracking", source_uid, str(number))
