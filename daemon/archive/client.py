"""The archive as the service calls it: one client for DIMSE, one for DICOMweb, chosen by the settings.

`archive.stow_url` has reports stored over DICOMweb, `archive.retrieve = "dicomweb"` has images fetched over
it; all else is DIMSE. `open_clients` is the one place that decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from config.settings import Archive as ArchiveSettings
from daemon.archive.credentials import ArchiveCredentials
from daemon.archive.dicomweb import WebService, read_token, retrieval_service, storing_service
from daemon.archive.dicomweb_client import DicomWebClient
from daemon.archive.dimse_client import ContextsRefused, DimseClient
from daemon.archive.query_retrieve import RetrieveOutcome, Wanted
from daemon.archive.store_status import OutgoingInstance
from daemon.archive.wado_rs import MAX_INSTANCE
from daemon.events.outcomes import StoreOutcome
from daemon.storage.received_instance import ReceivedInstance
from daemon.system import tls
from daemon.system.tls import Side

__all__ = ["Archive", "ArchiveClient", "Clients", "ContextsRefused", "open_clients"]


class ArchiveClient(Protocol):
    """Stores reports in the archive, and finds and fetches single instances, over one transport."""

    def echo(self) -> None:
        """Check that the archive can be reached.

        Raises:
            ArchiveError: it cannot be reached, refuses the connection, or answers anything but success.
        """
        ...

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Send `items`; yield the outcome of each, in order, as soon as it is known."""
        ...

    def find_instances(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Return those of `wanted` that the archive holds, with study and series filled in.

        Raises:
            ArchiveError: the archive cannot be asked, or does not answer.
        """
        ...

    def get_instances(
        self, wanted: Iterable[Wanted], accept: Callable[[ReceivedInstance], None], max_size: int = MAX_INSTANCE
    ) -> list[RetrieveOutcome]:
        """Fetch each of `wanted`; return the outcomes in order.

        Each instance goes to `accept`, which refuses it by RefusedInstance or OSError. DICOMweb takes at most
        `max_size` bytes of each.

        Raises:
            ArchiveError: the archive cannot be reached.
        """
        ...


@dataclass(frozen=True)
class Clients:
    """Which client does what under the present settings."""

    storing: ArchiveClient
    retrieving: ArchiveClient
    dimse: DimseClient  # C-MOVE and storage commitment exist over DIMSE only


def open_clients(
    settings: ArchiveSettings, calling_ae: str, incoming: Path, credentials: ArchiveCredentials
) -> Clients:
    """Return the clients that `settings` ask for; no connection is opened."""
    dimse = DimseClient(settings, calling_ae, incoming, credentials)

    def web(service_of: Callable[[ArchiveSettings], tuple[str, str]]) -> DicomWebClient:
        return DicomWebClient(lambda: _web_service(settings, credentials, *service_of(settings)), calling_ae, incoming)

    return Clients(
        storing=web(storing_service) if settings.stow_url else dimse,
        retrieving=web(retrieval_service) if settings.retrieve == "dicomweb" else dimse,
        dimse=dimse,
    )


def _web_service(settings: ArchiveSettings, credentials: ArchiveCredentials, named: str, url: str) -> WebService:
    context = credentials.context(settings, Side.CALL_HOST) or tls.public_context()
    token = read_token(settings.dicomweb_token_file, url, named)
    return WebService(url, named, settings.timeout_s, context, token)


class Archive:
    """The archive of `settings`, called as `calling_ae`.

    Retrieved instances are written into `incoming` first. It keeps no connection between calls, so `settings`
    may be replaced at any time: each call uses the client that the settings ask for when it begins.

    Raises:
        ConfigurationError: `archive.tls` names files that cannot be used.
    """

    def __init__(self, settings: ArchiveSettings, calling_ae: str, incoming: Path) -> None:
        self.settings = settings
        self.calling_ae = calling_ae
        self.incoming = incoming
        self._credentials = ArchiveCredentials()
        self._credentials.load(settings, Side.CALL)

    @property
    def _clients(self) -> Clients:
        return open_clients(self.settings, self.calling_ae, self.incoming, self._credentials)

    def associate(self, contexts: Sequence[PresentationContext]) -> AbstractContextManager[Association]:
        """Open an association for these contexts; see `ArchiveAssociations.open`."""
        return self._clients.dimse.associate(contexts)

    def echo(self) -> None:
        """Check that reports can be sent; see `ArchiveClient.echo`."""
        self._clients.storing.echo()

    def store(self, items: Iterable[OutgoingInstance]) -> Iterator[StoreOutcome]:
        """Send `items`; see `ArchiveClient.store`."""
        yield from self._clients.storing.store(items)

    def find_instances(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Return those of `wanted` that the archive holds; see `ArchiveClient.find_instances`."""
        return self._clients.retrieving.find_instances(wanted)

    def get_instances(
        self, wanted: Iterable[Wanted], accept: Callable[[ReceivedInstance], None], max_size: int = MAX_INSTANCE
    ) -> list[RetrieveOutcome]:
        """Fetch each of `wanted`; see `ArchiveClient.get_instances`."""
        return self._clients.retrieving.get_instances(wanted, accept, max_size)

    def move_instances(self, wanted: Iterable[Wanted], destination_ae: str) -> list[RetrieveOutcome]:
        """Have the archive send each of `wanted` to us; see `DimseClient.move_instances`."""
        return self._clients.dimse.move_instances(wanted, destination_ae)

    def request_commitment(
        self,
        transaction_uid: str,
        instances: Sequence[tuple[str, str]],
        take: Callable[[Dataset], int],
        *,
        answered: threading.Event,
        linger_s: float,
    ) -> None:
        """Ask the archive to commit `instances`; see `DimseClient.request_commitment`."""
        self._clients.dimse.request_commitment(transaction_uid, instances, take, answered=answered, linger_s=linger_s)
