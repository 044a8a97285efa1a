"""N-EVENT-REPORT: what an archive tells of the storage commitment that it was asked for (PS3.4 J.3.3)."""

from __future__ import annotations

from collections.abc import Callable

from pydicom import Dataset
from pynetdicom import evt

INVALID_ARGUMENT = 0x0115  # PS3.7 C.5.12


def take_report(event: evt.Event, take: Callable[[Dataset], int]) -> int:
    """Hand an N-EVENT-REPORT's event information to `take`; returns the status to answer."""
    try:
        information = event.event_information
    except Exception:  # what pynetdicom raises over bytes that are no data set
        return INVALID_ARGUMENT
    return take(information)
