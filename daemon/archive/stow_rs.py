"""Storing over HTTP: STOW-RS (PS3.18 10.5), one request per instance on one connection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from uuid import uuid4
from xml.etree import ElementTree

from daemon.archive.dicomweb import PASSING, WebService, request_each
from daemon.archive.store_status import OutgoingInstance, judge_store_status
from daemon.dicom.status import DUPLICATE_SOP_INSTANCE, SUCCESS
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind

MAX_ANSWER = 1 << 20  # bytes; an answer names one instance
REFERENCED, FAILED = "00081199", "00081198"
INSTANCE_UID, WARNING_REASON, FAILURE_REASON = "00081155", "00081196", "00081197"


def store(service: WebService, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
    """POST each item to `service`; yield the outcome of each, in order, as soon as it is known.

    Transport faults are handled by `daemon.archive.dicomweb.request_each`.
    """
    with closing(service.connection()) as connection:

        def retry(item: OutgoingInstance, reason: str) -> StoreOutcome:
            return StoreOutcome(item.sop_instance_uid, StoreOutcomeKind.RETRY, None, reason)

        yield from request_each(
            service, connection, items, request=lambda item: _store_one(connection, service, item), retry=retry
        )


def judge(http_status: int, content_type: str, body: bytes, sop_instance_uid: str) -> StoreOutcome:
    """Return the outcome for one instance from the answer to a store request (PS3.18 10.5.3, annex I.2).

    Success counts only if the answer names the instance as stored: a login page answers 200 as well.
    """

    def outcome(kind: StoreOutcomeKind, status: int | None, reason: str) -> StoreOutcome:
        return StoreOutcome(sop_instance_uid, kind, status, f"HTTP {http_status}: {reason}")

    stored, failed = _sequences(content_type, body)
    if sop_instance_uid in failed:
        status = failed[sop_instance_uid]
        if status is None:
            return outcome(StoreOutcomeKind.FAILED, None, "failed, without a reason")
        kind, reason = judge_store_status(status)
        # A reason inside Failed SOP Sequence is a failure whatever it says, except "already holds it".
        refused = kind is StoreOutcomeKind.STORED and status != DUPLICATE_SOP_INSTANCE
        return outcome(StoreOutcomeKind.FAILED if refused else kind, status, reason)
    if 200 <= http_status < 300:
        if sop_instance_uid not in stored:
            return outcome(
                StoreOutcomeKind.RETRY, None, "the answer does not name the instance; check archive.stow_url"
            )
        warning = stored[sop_instance_uid]
        return outcome(
            StoreOutcomeKind.STORED, warning or SUCCESS, "stored" if warning is None else f"warning 0x{warning:04X}"
        )
    if 400 <= http_status < 500 and http_status not in PASSING:
        return outcome(StoreOutcomeKind.FAILED, None, "refused")
    return outcome(StoreOutcomeKind.RETRY, None, "not taken now")


def _store_one(connection: HTTPConnection, service: WebService, item: OutgoingInstance) -> StoreOutcome:
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    try:
        file = item.path.open("rb")
    except FileNotFoundError as error:
        reason = f"the stored file cannot be read: {type(error).__name__}"
        return StoreOutcome(item.sop_instance_uid, StoreOutcomeKind.FAILED, None, reason)
    with file:
        connection.putrequest("POST", service.target("/studies"))
        connection.putheader("Content-Type", f'multipart/related; type="application/dicom"; boundary={boundary}')
        connection.putheader("Content-Length", str(len(head) + os.fstat(file.fileno()).st_size + len(tail)))
        for name, value in service.headers("application/dicom+json").items():
            connection.putheader(name, value)
        connection.endheaders(head)
        connection.send(file)
        connection.send(tail)
    response: HTTPResponse = connection.getresponse()
    body = response.read(MAX_ANSWER)
    if response.read(1):  # more than MAX_ANSWER: leave the rest unread, and the connection unused
        connection.close()
    return judge(response.status, response.headers.get_content_type(), body, item.sop_instance_uid)


def _sequences(content_type: str, body: bytes) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Return what was stored and what failed, by SOP Instance UID, from DICOM JSON or native XML.

    The values are the warning or failure reasons.
    """
    try:
        if content_type.endswith("json"):
            return _from_json(json.loads(body))
        if content_type.endswith("xml"):
            return _from_xml(ElementTree.fromstring(body))
    except (ValueError, TypeError, AttributeError, LookupError, ElementTree.ParseError):
        pass  # not the answer that the standard requires: it names no instance
    return {}, {}


def _from_json(answer: Any) -> tuple[dict[str, int | None], dict[str, int | None]]:
    dataset = answer[0] if isinstance(answer, list) else answer

    def named(sequence: str, reason: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for item in dataset.get(sequence, {}).get("Value", ()):
            reasons = item.get(reason, {}).get("Value", ())
            found[item[INSTANCE_UID]["Value"][0]] = int(reasons[0]) if reasons else None
        return found

    return named(REFERENCED, WARNING_REASON), named(FAILED, FAILURE_REASON)


def _from_xml(root: ElementTree.Element) -> tuple[dict[str, int | None], dict[str, int | None]]:
    def named(sequence: str, reason: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        # Some servers leave the namespace of PS3.19 A.1 out.
        for item in root.iterfind(f"{{*}}DicomAttribute[@tag='{sequence}']/{{*}}Item"):
            uid = item.findtext(f"{{*}}DicomAttribute[@tag='{INSTANCE_UID}']/{{*}}Value")
            text = item.findtext(f"{{*}}DicomAttribute[@tag='{reason}']/{{*}}Value")
            if uid:
                found[uid.strip()] = int(text) if text else None
        return found

    return named(REFERENCED, WARNING_REASON), named(FAILED, FAILURE_REASON)
