"""The name and UID by which each lesion of a report can be found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from daemon.dicom.uids import derive_uid, is_valid_uid, tracking_uid
from daemon.reports.case import Result
from daemon.reports.charset import CharacterSet


def tracking(results: Sequence[Result], text: CharacterSet) -> list[tuple[str, str]]:
    """Return tracking identifier and UID of each lesion, unique in the report: viewers merge equal UIDs.

    A UID that several lesions share (components of one segment) identifies none of them: each gets a UID of
    its own, derived from the shared one. Every kind of report on a lesion object gives a lesion the same two.
    """
    lesions = [result.lesion for result in results]
    sharing_uid = Counter(lesion.tracking_uid for lesion in lesions)
    sharing_name = Counter(lesion.tracking_id for lesion in lesions)
    seen: Counter[str] = Counter()
    found = []
    for number, lesion in enumerate(lesions, start=1):
        name, uid = lesion.tracking_id, lesion.tracking_uid
        if not name:
            name = f"Lesion {number}"
        elif sharing_name[name] > 1:
            seen[name] += 1
            name = f"{name} ({seen[name]} of {sharing_name[name]})"
        if not uid:
            uid = tracking_uid(lesion.source_uid, number)
        elif sharing_uid[uid] > 1 or not is_valid_uid(uid):
            uid = derive_uid("tracking", lesion.source_uid, uid, str(number))
        found.append((text(name) or f"Lesion {number}", uid))
    return found
