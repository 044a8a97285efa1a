"""The DICOM listener: C-ECHO and C-STORE of every standard storage class in every transfer syntax, stored as received.

Connections come in here, and who may have an association is decided here. It is served by this process, or by one of the
receivers, so that what many senders bring at once is not held up by one interpreter's lock.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from pydicom import Dataset

from config import settings
from config.errors import ConfigurationError
from daemon.dimse.association import IncomingAssociation
from daemon.dimse.pending_connections import Address, Connections, Limits, allow_descriptors
from daemon.events.outcomes import Rejection, RejectionKind
from daemon.receiving.admission import SPARE, Admission
from daemon.receiving.receiver_process import ReceiverProcess
from daemon.receiving.store_scp import DESCRIPTORS_EACH, ScpCallbacks, StoreScp
from daemon.storage.received_instance import ReceivedInstance
from daemon.system.tls import Credentials, Side

DRAIN_LIMIT_S = 30.0

log = structlog.get_logger()


class Listener:
    """Receives instances into the folder `incoming` and hands each complete one to `accept`.

    `accept`, `full` and `commitment` are as in `ScpCallbacks`; `full` also keeps associations away. `on_rejection` is told of
    each caller not let in, `on_end` of the id of each association that has ended. All are called from several threads.
    `receivers` serve beside this process where connections are not TLS; they accept by themselves.

    Raises:
        ConfigurationError: a TLS file of the settings cannot be used.
    """

    def __init__(
        self,
        chosen: settings.Listener,
        incoming: Path,
        accept: Callable[[ReceivedInstance], None],
        full: Callable[[], str | None] = lambda: None,
        commitment: Callable[[str, Dataset], int] | None = None,
        on_rejection: Callable[[Rejection], None] = lambda _: None,
        on_end: Callable[[str], None] = lambda _: None,
        receivers: Sequence[ReceiverProcess] = (),
    ) -> None:
        self._settings = chosen
        self._incoming = incoming
        self._admission = Admission(chosen, full, on_rejection)
        self._behind = ScpCallbacks(self._admission.decide, full, accept, commitment, self._ended)
        self._on_end = on_end
        # What TLS has agreed on cannot be handed to another process.
        self._receivers = receivers if chosen.tls is None else ()
        self._tls = Credentials(chosen.tls, "listener.tls", Side.ACCEPT) if chosen.tls else None
        self._connections: Connections | None = None
        self._reception: StoreScp | None = None

    def start(self) -> None:
        """Open the port and serve in the background.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        chosen = self._settings
        allow_descriptors(chosen.max_connections + DESCRIPTORS_EACH * (chosen.max_associations + SPARE))
        limits = Limits(chosen.max_connections, chosen.max_connections_per_address, chosen.request_timeout_s)
        try:
            self._connections = Connections(
                (chosen.host, chosen.port),
                self._tls.context if self._tls else None,
                limits,
                self._serve,
                self._handshake_failed,
            )
        except OSError as error:
            raise ConfigurationError(
                f"listener.host = {chosen.host!r}, listener.port = {chosen.port}: {error.strerror}; "
                "name an address and a free port of this machine"
            ) from error
        self._reception = StoreScp(chosen, self._incoming, self._connections.address, self._behind)
        for receiver in self._receivers:
            receiver.start(self._connections.address, self._behind)
        self._connections.start()
        if not chosen.peers:
            log.warning("listener.peers is empty: every AE title from every address may send")

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        assert self._connections is not None, "the listener was not started"
        return int(self._connections.address[1])

    @property
    def waiting(self) -> int:
        """Connections that have not asked for an association yet."""
        return self._connections.waiting if self._connections is not None else 0

    @property
    def open_associations(self) -> int:
        """Associations that were accepted and have not ended."""
        return self._admission.admitted

    @property
    def served_here(self) -> list[IncomingAssociation]:
        """Those that this process serves, admitted or not."""
        return self._reception.open if self._reception is not None else []

    @property
    def rejected(self) -> dict[str, int]:
        """Callers not let in since the start, by kind."""
        return self._admission.rejected

    def replace_peers(self, peers: tuple[settings.Peer, ...]) -> None:
        """Who may call from now on; associations that are open go on."""
        self._admission.replace_peers(peers)

    def reconfigure_log(self, chosen: settings.Log) -> None:
        """How the receivers log from now on."""
        for receiver in self._receivers:
            receiver.reconfigure_log(chosen)

    @property
    def receivers_alive(self) -> int:
        """How many receivers serve."""
        return sum(receiver.is_ready for receiver in self._receivers)

    @property
    def receivers(self) -> int:
        """How many there should be."""
        return len(self._receivers)

    def reread_certificates(self) -> None:
        """Take over TLS files that have changed, without waiting for the next connection."""
        if self._tls is not None:
            self._tls.context()

    def stop_accepting(self) -> None:
        """Close the port; associations go on. Harmless when repeated."""
        if self._connections is not None and not self._admission.stopping:
            self._admission.stopping = True
            self._connections.stop()

    def stop(self, limit_s: float = DRAIN_LIMIT_S) -> None:
        """Close the port and let associations finish within `limit_s` seconds; idle and late ones are aborted."""
        self.stop_accepting()
        if self._reception is None:
            return
        others = [threading.Thread(target=receiver.stop, args=(limit_s,)) for receiver in self._receivers]
        for other in others:
            other.start()
        self._reception.stop(limit_s)
        for other in others:
            other.join()

    def _serve(self, connection: socket.socket, address: Address, request: bytes) -> None:
        """Have the association that a connection asked for served where fewest are; here, where that is undecided."""
        association_id, host = secrets.token_hex(4), str(address[0])
        if not self._admission.enter(association_id, host):
            connection.close()
            log.warning("connection closed: too many associations are being rejected or ended", address=host)
            return
        assert self._reception is not None
        free = [receiver for receiver in self._receivers if receiver.is_ready]
        least = min(free, key=lambda receiver: receiver.open, default=None)
        if least is not None and least.open < len(self._reception.open):
            least.serve(association_id, connection, address, request)
        else:
            self._reception.serve(association_id, connection, address, request)

    def _ended(self, association_id: str) -> None:
        self._admission.leave(association_id)
        self._on_end(association_id)

    def _handshake_failed(self, address: str, reason: str) -> None:
        self._admission.tell(Rejection(RejectionKind.TLS, address, "", "", reason))
