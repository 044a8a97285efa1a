"""Which presentation contexts are accepted: every standard storage class in every transfer syntax that can be walked."""

from __future__ import annotations

import functools

from pydicom.uid import UID_dictionary
from pynetdicom import AllStoragePresentationContexts, build_context
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from daemon.dicom.dataset_scan import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
)

_UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)  # best first


def storage_classes() -> list[str]:
    """Every storage SOP Class of the standard, retired ones and those of non-patient objects included."""
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and " Storage" in name and "Media Storage Directory" not in name
    }
    return sorted(named | {str(context.abstract_syntax) for context in AllStoragePresentationContexts})


@functools.cache
def supported_contexts() -> list[PresentationContext]:
    """Verification, storage commitment results and every storage SOP Class, each with every transfer syntax.

    Made once (it takes 0.1 s), never changed.
    """
    syntaxes = sorted(TRANSFER_SYNTAXES)
    commitment = build_context(StorageCommitmentPushModel, syntaxes)
    commitment.scu_role = commitment.scp_role = True  # its SCP calls us, in that role (PS3.4 J.3.3)
    return [commitment, *(build_context(uid, syntaxes) for uid in (Verification, *storage_classes()))]


def choose_transfer_syntax(offered: list[str]) -> str | None:
    """Which of the transfer syntaxes offered in one presentation context is accepted; None where none is known.

    A sender names first what it holds: a compressed syntax at the head is taken as sent. Among uncompressed ones Explicit
    VR little endian goes first whatever the order, as it keeps the value representations of private elements.
    """
    known = [uid for uid in offered if uid in TRANSFER_SYNTAXES]
    if known and known[0] in _UNCOMPRESSED:
        return next(uid for uid in _UNCOMPRESSED if uid in known)
    return known[0] if known else None
