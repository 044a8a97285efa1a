"""The DICOM listener: C-ECHO and C-STORE of every standard storage class, stored as received.

It accepts connections and decides who may have an association. This process or a receiver process serves it,
so that one interpreter's lock does not limit how fast many senders are served.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from pydicom import Dataset

from config.errors import ConfigurationError
from config.settings import Listener as ListenerSettings
from config.settings import Log, Peer
from daemon.dimse.association import IncomingAssociation
from daemon.dimse.pending_connections import Address, Connections, Limits, allow_descriptors
from daemon.events.outcomes import Rejection, RejectionKind
from daemon.receiving.admission import SPARE_ASSOCIATIONS, Admission
from daemon.receiving.receiver_process import ReceiverProcess
from daemon.receiving.store_scp import DESCRIPTORS_EACH, ScpCallbacks, StoreScp
from daemon.storage.received_instance import ReceivedInstance
from daemon.system.tls import Credentials, Side

MAX_DRAIN_S = 30.0

log = structlog.get_logger()


class Listener:
    """Receives instances into the folder `incoming` and passes each complete one to `accept`.

    `accept`, `full` and `commitment` are as in `ScpCallbacks`; if `full` returns a reason, associations are
    rejected, too. `on_rejection` is told of each rejected caller, `on_end` the id of each association that
    has ended. All are called from several threads. `receivers` serve beside this process, unless connections
    are TLS.

    Raises:
        ConfigurationError: a TLS file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        incoming: Path,
        accept: Callable[[ReceivedInstance], None],
        *,
        full: Callable[[], str | None] = lambda: None,
        commitment: Callable[[str, Dataset], int] | None = None,
        on_rejection: Callable[[Rejection], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
        receivers: Sequence[ReceiverProcess] = (),
    ) -> None:
        self._settings = settings
        self._incoming = incoming
        self._admission = Admission(settings, full, on_rejection)
        self._callbacks = ScpCallbacks(
            decide=self._admission.decide, full=full, accept=accept, commitment=commitment, ended=self._ended
        )
        self._on_end = on_end
        # The state of a TLS connection cannot be handed to another process.
        self._receivers = receivers if settings.tls is None else ()
        self._tls = Credentials(settings.tls, "listener.tls", Side.ACCEPT) if settings.tls else None
        self._connections: Connections | None = None
        self._scp: StoreScp | None = None

    def start(self) -> None:
        """Open the port and serve in the background.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        settings = self._settings
        allow_descriptors(
            settings.max_connections + DESCRIPTORS_EACH * (settings.max_associations + SPARE_ASSOCIATIONS)
        )
        limits = Limits(settings.max_connections, settings.max_connections_per_address, settings.request_timeout_s)
        try:
            self._connections = Connections(
                address=(settings.host, settings.port),
                tls=self._tls.context if self._tls else None,
                limits=limits,
                serve=self._serve,
                tls_failed=self._handshake_failed,
            )
        except OSError as error:
            raise ConfigurationError(
                f"listener.host = {settings.host!r}, listener.port = {settings.port}: {error.strerror}; "
                "name an address and a free port of this machine"
            ) from error
        self._scp = StoreScp(
            settings, folder=self._incoming, address=self._connections.address, callbacks=self._callbacks
        )
        for receiver in self._receivers:
            receiver.start(self._connections.address, self._callbacks)
        self._connections.start()
        if not settings.peers:
            log.warning("listener.peers is empty, any AE title at any address may send")

    @property
    def port(self) -> int:
        """The TCP port of the listener."""
        assert self._connections is not None, "the listener was not started"
        return int(self._connections.address[1])

    @property
    def waiting(self) -> int:
        """How many connections have not requested an association yet."""
        return self._connections.waiting if self._connections is not None else 0

    @property
    def open_associations(self) -> int:
        """How many associations were accepted and have not ended."""
        return self._admission.admitted

    @property
    def served_here(self) -> list[IncomingAssociation]:
        """The associations that this process serves, admitted or not."""
        return self._scp.open if self._scp is not None else []

    @property
    def rejected(self) -> dict[str, int]:
        """Callers rejected since the start, by kind."""
        return self._admission.rejected

    def replace_peers(self, peers: tuple[Peer, ...]) -> None:
        """Decide by these peers from now on; open associations go on."""
        self._admission.replace_peers(peers)

    def reconfigure_log(self, settings: Log) -> None:
        """Make the receivers log by these settings from now on."""
        for receiver in self._receivers:
            receiver.reconfigure_log(settings)

    @property
    def receivers_alive(self) -> int:
        """How many receivers are serving."""
        return sum(receiver.is_ready for receiver in self._receivers)

    @property
    def receivers(self) -> int:
        """How many receivers there should be."""
        return len(self._receivers)

    def reread_certificates(self) -> None:
        """Load TLS files that have changed, without waiting for the next connection."""
        if self._tls is not None:
            self._tls.context()

    def stop_accepting(self) -> None:
        """Close the port; associations go on. Safe to repeat."""
        if self._connections is not None and not self._admission.stopping:
            self._admission.stopping = True
            self._connections.stop()

    def stop(self, limit_s: float = MAX_DRAIN_S) -> None:
        """Close the port; let associations finish within `limit_s` seconds, and abort idle and late ones."""
        self.stop_accepting()
        if self._scp is None:
            return
        others = [threading.Thread(target=receiver.stop, args=(limit_s,)) for receiver in self._receivers]
        for other in others:
            other.start()
        self._scp.stop(limit_s)
        for other in others:
            other.join()

    def _serve(self, connection: socket.socket, address: Address, request: bytes) -> None:
        """Serve the requested association in the process that serves fewest; in this one if several do."""
        association_id, host = secrets.token_hex(4), str(address[0])
        if not self._admission.enter(association_id, host):
            connection.close()
            log.warning("connection closed", address=host, reason="too many associations are being rejected or ended")
            return
        assert self._scp is not None
        free = [receiver for receiver in self._receivers if receiver.is_ready]
        least = min(free, key=lambda receiver: receiver.open, default=None)
        if least is not None and least.open < len(self._scp.open):
            least.serve(association_id, connection, address, request)
        else:
            self._scp.serve(association_id, connection, address, request)

    def _ended(self, association_id: str) -> None:
        self._admission.leave(association_id)
        self._on_end(association_id)

    def _handshake_failed(self, address: str, reason: str) -> None:
        self._admission.count_rejection(Rejection(RejectionKind.TLS, address, "", "", reason))
