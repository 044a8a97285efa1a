"""Associations with the archive: negotiation, TLS, time limits, and errors that tell what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from config.settings import Archive as ArchiveSettings
from daemon.archive.credentials import ArchiveCredentials
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.errors import ArchiveError
from daemon.events import bus
from daemon.system.tls import Side

MAX_PDU = 131_072  # bytes


class ContextsRefused(ArchiveError):
    """The archive accepted the association but none of its presentation contexts."""


class ArchiveAssociations:
    """Opens associations to the archive of `settings` as `calling_ae`."""

    def __init__(self, settings: ArchiveSettings, calling_ae: str, credentials: ArchiveCredentials) -> None:
        self._settings = settings
        self._calling_ae = calling_ae
        self._credentials = credentials

    @contextmanager
    def open(
        self,
        contexts: Sequence[PresentationContext],
        *,
        ext_neg: Sequence[Any] = (),
        handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
        response_timeout_s: float | None = None,
    ) -> Iterator[Association]:
        """Open an association; it is released at the end of the block, and aborted if the block raises.

        It is also released if the consumer of a generator stops inside the block. `response_timeout_s` limits
        the wait for each DIMSE response (None: `archive.timeout_s`).

        Raises:
            ContextsRefused: the archive accepted none of `contexts`.
            ArchiveError: no archive is set, it cannot be reached, or it refuses the association.
        """
        host, port, limit_s = self._settings.host, self._settings.port, self._settings.timeout_s
        if host is None:
            raise ArchiveError("no archive is set; set archive.host")
        ae = AE(ae_title=self._calling_ae)
        ae.connection_timeout = ae.acse_timeout = limit_s
        ae.dimse_timeout = ae.network_timeout = response_timeout_s or limit_s
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        secure = self._credentials.context(self._settings, Side.CALL)
        opened: list[bool] = []

        def on_open(event: evt.Event) -> None:
            opened.append(True)
            _prepare_socket(event.assoc.dul.socket.socket, limit_s)

        try:
            association = ae.associate(
                host,
                port,
                contexts=list(contexts),
                ae_title=self._settings.ae_title,
                max_pdu=MAX_PDU,
                ext_neg=list(ext_neg),
                tls_args=(secure, host) if secure else None,
                evt_handlers=[(evt.EVT_CONN_OPEN, on_open), *handlers],
            )
        except OSError as error:
            reason = f"{self}: {error.strerror or error}; check archive.host"
            bus.publish(bus.ArchiveSilent(reason))
            raise ArchiveError(reason) from error
        if not association.is_established:
            refused = self._refused(association, bool(opened))
            bus.publish(bus.ArchiveSilent(str(refused)))
            raise refused
        bus.publish(bus.ArchiveAnswered())
        try:
            yield association
        except GeneratorExit:  # the consumer wants no more; no request is under way
            if association.is_established:
                association.release()
            raise
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()

    def _refused(self, association: Association, opened: bool) -> ArchiveError:
        answer = association.acceptor.primitive
        if not opened:
            secure = " or failed the TLS handshake" if self._settings.tls else ""
            return ArchiveError(f"{self} cannot be reached{secure}; check archive.host, archive.port and the network")
        if association.is_rejected and answer is not None:
            return ArchiveError(
                f"{self} refused the association ({answer.result_str}: {answer.reason_str}); {self._advice(answer)}"
            )
        if association.rejected_contexts:
            results = {context.status for context in association.rejected_contexts}
            return ContextsRefused(f"{self} accepted no presentation context ({', '.join(sorted(results))})")
        return ArchiveError(f"{self} did not answer the association request, or broke it off")

    def _advice(self, answer: Any) -> str:
        """Return what to do about an A-ASSOCIATE-RJ, by its source and reason (PS3.8 table 9-21)."""
        reason = answer.result_source, answer.diagnostic
        if reason == (1, 3):
            return f"it does not know us: enter the AE title {self._calling_ae} there, with this machine's address and port"
        if reason == (1, 7):
            return f"it has another AE title than {self._settings.ae_title}: set archive.ae_title to its own"
        if answer.result_source == 3:
            return "it is busy; try again later, or have it allow more associations"
        return f"make the AE title {self._calling_ae} known there, and check archive.ae_title"

    def __str__(self) -> str:
        return f"archive {self._settings.ae_title} at {self._settings.host}:{self._settings.port}"


def _prepare_socket(connection: socket.socket, limit_s: float) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else some 40 ms per object
    connection.settimeout(limit_s)  # pynetdicom sets none, and a peer that stops reading would block us for ever
