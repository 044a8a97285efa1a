"""The accepted presentation contexts: every standard storage class in every known transfer syntax."""

from __future__ import annotations

import functools

from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext

from daemon.dicom.sop_classes import STORAGE_COMMITMENT, VERIFICATION, storage_classes
from daemon.dicom.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
)

_UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)  # best first


@functools.cache
def supported_contexts() -> list[PresentationContext]:
    """Return verification, storage commitment and every storage SOP Class, each with every transfer syntax.

    The list is made once (it takes 0.1 s); callers must not change it.
    """
    syntaxes = sorted(TRANSFER_SYNTAXES)
    commitment = build_context(STORAGE_COMMITMENT, syntaxes)
    commitment.scu_role = commitment.scp_role = True  # the archive reports results to us as their SCP (PS3.4 J.3.3)
    return [commitment, *(build_context(uid, syntaxes) for uid in (VERIFICATION, *storage_classes()))]


def choose_transfer_syntax(offered: list[str]) -> str | None:
    """Return which offered transfer syntax of a presentation context is accepted, None if none is known.

    A sender names first how it holds the object, so a compressed syntax at the head is accepted as it is.
    Among uncompressed ones Explicit VR Little Endian is preferred, as it keeps the value representations of
    private elements.
    """
    known = [uid for uid in offered if uid in TRANSFER_SYNTAXES]
    if known and known[0] in _UNCOMPRESSED:
        return next(uid for uid in _UNCOMPRESSED if uid in known)
    return known[0] if known else None
