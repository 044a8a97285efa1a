"""Find and fetch single instances over HTTP: QIDO-RS (PS3.18 10.6) and WADO-RS (PS3.18 10.4)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from threading import Event, Timer
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import structlog
from pydicom import Dataset, dcmread

from daemon.archive.dicomweb import PASSING, WebService, request_each
from daemon.archive.query_retrieve import RetrieveKind, RetrieveOutcome, Wanted, judge_get, logged, status_of
from daemon.dicom.dataset_scan import scan_data_set
from daemon.dicom.digest import FILE_META_START
from daemon.dicom.status import CANNOT_UNDERSTAND, DATA_SET_DOES_NOT_MATCH_SOP_CLASS
from daemon.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from daemon.dicom.uids import is_safe_uid
from daemon.errors import ArchiveError, RefusedInstance
from daemon.storage.received_instance import ReceivedInstance, received_instance

MAX_INSTANCE = 4 << 30  # bytes
MAX_ANSWER = 8 << 20  # bytes; an archive that does not filter by the instance names every one of a study
MAX_HEAD = 1 << 16  # bytes before a part's content
MAX_META = 1 << 16  # bytes of file meta information
CHUNK = 1 << 16  # bytes
# Each in the syntax that it is stored in: an archive then need not transcode (PS3.18 8.7.3.5.2).
INSTANCE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"
# The archive has no such search, or does not hold what is asked about: for another resource it may be
# otherwise.
NOT_HERE = frozenset({404, 405, 501})

log = structlog.get_logger()


def find(service: WebService, wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return those of `wanted` that the archive holds, with study and series filled in from its answers.

    Raises:
        ArchiveError: the archive cannot be reached, refuses the query, or breaks off.
    """
    try:
        with closing(service.connection()) as connection:
            found = (_find_one(connection, service, item) for item in wanted)
            return [item for item in found if item is not None]
    except (OSError, HTTPException) as error:
        raise ArchiveError(service.fault(error)) from error


class RetrievedParts:
    """Takes the instances of WADO-RS answers: each becomes a file in `folder`, which goes to `accept`.

    An answer may take at most `limit_s` seconds, and an instance have at most `max_size` bytes.
    """

    def __init__(
        self,
        folder: Path,
        accept: Callable[[ReceivedInstance], None],
        *,
        own_ae: str,
        limit_s: float,
        max_size: int,
    ) -> None:
        self._folder = folder
        self._accept = accept
        self._own_ae = own_ae
        self._max_size = max_size
        self._name = f"wado-{uuid4().hex[:12]}"
        self.limit_s = limit_s

    def take(self, content: Iterable[bytes], sop_uid: str, peer: str) -> int:
        """Accept the instance `sop_uid` whose Part 10 file is `content`.

        Returns the C-STORE status with which it would be answered.

        Raises:
            ArchiveError: the content broke off.
        """
        path = self._folder / f"{self._name}-{uuid4().hex[:12]}.part"
        return status_of(sop_uid, path, lambda: self._take(content, path, sop_uid, peer))

    def _take(self, content: Iterable[bytes], path: Path, sop_uid: str, peer: str) -> None:
        size = 0
        with path.open("xb") as file:
            for chunk in content:
                size += len(chunk)
                if size > self._max_size:
                    raise RefusedInstance(
                        CANNOT_UNDERSTAND, f"it is larger than listener.max_instance = {self._max_size}"
                    )
                file.write(chunk)
        with path.open("rb") as file:
            syntax = _transfer_syntax(file)
            facts = scan_data_set(file, syntax)
        if facts.sop_instance_uid != sop_uid:
            raise RefusedInstance(
                DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "the archive sent another instance than it was asked for"
            )
        self._accept(
            received_instance(
                path,
                facts,
                transfer_syntax_uid=syntax,
                calling_ae="",
                called_ae=self._own_ae,
                peer_address=peer,
                association_id=self._name,
            )
        )


def get(service: WebService, wanted: Iterable[Wanted], receiver: RetrievedParts) -> Iterator[RetrieveOutcome]:
    """GET each of `wanted`, of which study and series are known; each instance goes to `receiver`.

    Transport faults are handled by `daemon.archive.dicomweb.request_each`.
    """
    with closing(service.connection(receiver.limit_s)) as connection:

        def retry(item: Wanted, reason: str) -> RetrieveOutcome:
            return RetrieveOutcome(item, RetrieveKind.RETRY, None, reason)

        outcomes = request_each(
            service, connection, wanted, request=lambda item: _get_one(connection, service, item, receiver), retry=retry
        )
        for outcome in outcomes:
            yield logged(outcome)


def first_part(read: Callable[[int], bytes], boundary: str) -> Iterator[bytes]:
    """Yield the content of the first part of a multipart body (RFC 2046 5.1.1).

    What follows it stays unread.

    Raises:
        ArchiveError: the body has no such part, or ends before the part does.
    """
    delimiter = b"\r\n--" + boundary.encode()
    held = b"\r\n"  # the first boundary may come without it
    while (start := held.find(delimiter)) < 0 or (end := held.find(b"\r\n\r\n", start + len(delimiter))) < 0:
        chunk = read(CHUNK)
        if not chunk or len(held) > MAX_HEAD:
            raise ArchiveError("the answer has no part")
        held += chunk
    held = held[end + 4 :]
    while (stop := held.find(delimiter)) < 0:
        sure = max(0, len(held) - len(delimiter) + 1)
        yield held[:sure]
        if not (chunk := read(CHUNK)):
            raise ArchiveError("the answer was cut")
        held = held[sure:] + chunk
    yield held[:stop]


def _find_one(connection: HTTPConnection, service: WebService, wanted: Wanted) -> Wanted | None:
    study = [f"/studies/{quote(wanted.study_uid, safe='')}/instances"] if wanted.study_uid else []
    fault: ArchiveError | None = None
    for resource in ("/instances", *study):  # not every archive searches beyond a study
        try:
            candidates = _search(connection, service, resource, wanted)
        except ArchiveError as error:
            fault = error
            continue
        for candidate in candidates:
            # An archive that does not filter by instance answers with every other one, too.
            if candidate.sop_uid == wanted.sop_uid:
                return candidate
    if fault is not None:
        raise fault
    return None


def _search(connection: HTTPConnection, service: WebService, resource: str, wanted: Wanted) -> list[Wanted]:
    query = f"SOPInstanceUID={quote(wanted.sop_uid, safe='')}&includefield={STUDY_UID}&includefield={SERIES_UID}"
    target = service.target(resource, query)
    with _answer(connection, target, service.headers("application/dicom+json"), service.timeout_s) as response:
        body = response.read(MAX_ANSWER + 1)
    if response.status == 204:
        return []
    refused = 400 <= response.status < 500 and response.status not in PASSING
    if refused or response.status in NOT_HERE:
        log.warning("QIDO-RS refused", sop_instance_uid=wanted.sop_uid, http_status=response.status)
        return []
    if response.status != 200:
        raise ArchiveError(f"archive at {service.host} answered HTTP {response.status}; check {service.named}")
    try:
        return [found for match in json.loads(body) if (found := _candidate(match, wanted))]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        kind = response.headers.get_content_type()
        raise ArchiveError(
            f"archive at {service.host} answered the search with {kind} that is no DICOM JSON; check {service.named}"
        ) from error


def _candidate(match: Any, wanted: Wanted) -> Wanted | None:
    """Return what one match of the answer (PS3.18 F.2) names; None if that is not enough to fetch it."""
    uids = [
        (match.get(tag, {}).get("Value") or [known])[0]
        for tag, known in ((STUDY_UID, wanted.study_uid), (SERIES_UID, wanted.series_uid), (INSTANCE_UID, None))
    ]
    if not all(isinstance(uid, str) and is_safe_uid(uid) for uid in uids):
        return None
    return Wanted(*uids)


def _get_one(
    connection: HTTPConnection, service: WebService, wanted: Wanted, receiver: RetrievedParts
) -> RetrieveOutcome:
    named = zip(("studies", "series", "instances"), (wanted.study_uid, wanted.series_uid, wanted.sop_uid), strict=True)
    target = service.target("".join(f"/{level}/{quote(uid or '', safe='')}" for level, uid in named))
    with _answer(connection, target, service.headers(INSTANCE), receiver.limit_s) as response:
        is_multipart = response.headers.get_content_type() == "multipart/related"
        boundary = response.headers.get_boundary() if is_multipart else None
        if response.status == 200 and boundary:
            status = receiver.take(_contents(response, boundary), wanted.sop_uid, service.host)
            return judge_get(wanted, Dataset(), status)
    if response.status == 200:
        kind, reason = RetrieveKind.RETRY, f"not the instance, but {response.headers.get_content_type()}"
    elif response.status in (404, 410):
        kind, reason = RetrieveKind.MISSING, "the archive does not hold it"
    elif 400 <= response.status < 500 and response.status not in PASSING:
        kind, reason = RetrieveKind.FAILED, "the archive refused"
    else:
        kind, reason = RetrieveKind.RETRY, "not given now"
    return RetrieveOutcome(wanted, kind, None, f"HTTP {response.status}: {reason}")


def _contents(response: HTTPResponse, boundary: str) -> Iterator[bytes]:
    """Yield the instance in a multipart answer.

    A transport fault is an ArchiveError, unlike one of our disk.
    """
    try:
        yield from first_part(response.read, boundary)
    except (OSError, HTTPException) as error:
        raise ArchiveError(f"the answer broke off ({type(error).__name__})") from error


@contextmanager
def _answer(connection: HTTPConnection, target: str, headers: dict[str, str], limit_s: float) -> Iterator[HTTPResponse]:
    """Send a GET; the answer is to be read within the block, in `limit_s` seconds in all."""
    if connection.sock is None:
        connection.connect()
    # A socket's own limit is for each read: an answer that drips would block us for ever.
    expired = Event()
    timer = Timer(limit_s, _shut, [connection.sock, expired])
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        with response:
            yield response
            if response.read(CHUNK) and not response.isclosed():
                connection.close()  # more than is wanted
    except (OSError, HTTPException, ArchiveError) as error:
        if expired.is_set():
            raise TimeoutError(f"no whole answer in {limit_s:g} s") from error
        raise
    finally:
        timer.cancel()


def _shut(connection: socket.socket, expired: Event) -> None:
    expired.set()  # before the reader wakes; a Timer sets its own event only after this function
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS's own shutdown would break a read in another thread


def _transfer_syntax(file: BinaryIO) -> str:
    """Read a Part 10 file up to its data set (PS3.10 7.1); return the transfer syntax that it names.

    Raises:
        RefusedInstance: C000, it is no Part 10 file, or its transfer syntax is not standard.
    """
    head = file.read(FILE_META_START)
    length = int.from_bytes(head[-4:], "little")
    if head[128:-4] != b"DICM\x02\x00\x00\x00UL\x04\x00" or length > MAX_META:
        raise RefusedInstance(CANNOT_UNDERSTAND, "the part is no DICOM file (PS3.10)")
    try:
        syntax = str(dcmread(BytesIO(head + file.read(length))).file_meta.TransferSyntaxUID)
    except Exception as error:  # pydicom raises many kinds over broken input
        raise RefusedInstance(CANNOT_UNDERSTAND, f"no file meta information ({type(error).__name__})") from error
    if syntax not in TRANSFER_SYNTAXES:
        raise RefusedInstance(CANNOT_UNDERSTAND, "its transfer syntax is not one of the standard's")
    return syntax
