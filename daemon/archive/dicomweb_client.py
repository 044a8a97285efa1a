"""The archive over DICOMweb (PS3.18): reports by STOW-RS, images by QIDO-RS and WADO-RS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from daemon.archive import stow_rs, wado_rs
from daemon.archive.dicomweb import WebService
from daemon.archive.query_retrieve import RETRIEVE_PATIENCE, RetrieveOutcome, Wanted
from daemon.archive.store_status import OutgoingInstance
from daemon.errors import ArchiveError
from daemon.events import bus
from daemon.events.outcomes import StoreOutcome, StoreOutcomeKind
from daemon.storage.received_instance import ReceivedInstance


class DicomWebClient:
    """Calls a DICOMweb service; retrieved instances are written into `incoming` first.

    `service` returns the service with present TLS files and token. It is called for each request, and raises
    ArchiveError if they cannot be used. `own_ae` is named as the receiver of retrieved instances.
    """

    def __init__(self, service: Callable[[], WebService], own_ae: str, incoming: Path) -> None:
        self._service = service
        self._own_ae = own_ae
        self._incoming = incoming

    def echo(self) -> None:
        """Open a connection to the service, and close it.

        Raises:
            ArchiveError: it cannot be reached.
        """
        service = self._service()
        try:
            service.connect()
        except ArchiveError as error:
            bus.publish(bus.ArchiveSilent(str(error)))
            raise
        bus.publish(bus.ArchiveAnswered())

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Send `items` by STOW-RS; yield the outcome of each, in order, as soon as it is known."""
        items = list(items)
        try:
            service = self._service()
        except ArchiveError as error:
            for item in items:
                yield StoreOutcome(item.sop_instance_uid, StoreOutcomeKind.RETRY, None, str(error))
            return
        for outcome in stow_rs.store(service, items):
            is_silent = outcome.kind is StoreOutcomeKind.RETRY and outcome.status is None
            bus.publish(bus.ArchiveSilent(outcome.reason) if is_silent else bus.ArchiveAnswered())
            yield outcome

    def find_instances(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Return those of `wanted` that the archive holds (QIDO-RS), with study and series filled in.

        Raises:
            ArchiveError: the archive cannot be asked, or does not answer.
        """
        return wado_rs.find(self._service(), wanted)

    def get_instances(
        self,
        wanted: Iterable[Wanted],
        accept: Callable[[ReceivedInstance], None],
        max_size: int = wado_rs.MAX_INSTANCE,
    ) -> list[RetrieveOutcome]:
        """Fetch each of `wanted` by WADO-RS, of at most `max_size` bytes; return the outcomes in order.

        Each instance goes to `accept`, which refuses it by RefusedInstance or OSError.

        Raises:
            ArchiveError: the service cannot be used.
        """
        service = self._service()
        receiver = wado_rs.RetrievedParts(
            self._incoming,
            accept,
            own_ae=self._own_ae,
            limit_s=RETRIEVE_PATIENCE * service.timeout_s,
            max_size=max_size,
        )
        return list(wado_rs.get(service, wanted, receiver))
