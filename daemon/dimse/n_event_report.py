"""N-EVENT-REPORT: an archive reports the result of a storage commitment request (PS3.4 J.3.3)."""

from __future__ import annotations

from collections.abc import Callable

from pydicom import Dataset
from pynetdicom import evt

from daemon.dicom.status import INVALID_ARGUMENT_VALUE


def take_report(event: evt.Event, take: Callable[[Dataset], int]) -> int:
    """Pass an N-EVENT-REPORT's event information to `take`; return the status to answer."""
    try:
        information = event.event_information
    except Exception:  # pynetdicom raises many kinds if the bytes are not a data set
        return INVALID_ARGUMENT_VALUE
    return take(information)
