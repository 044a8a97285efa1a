"""This process as one of the nodes that share the ledger.

It renews its lease, and takes over work when the lease of another node expires.

A node that was frozen, or cut off from the database, for longer than its lease has lost its work, which
another node repeats. It then rejoins under a new id, and results under the old one are ignored.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from config import __version__
from config.settings import Settings
from daemon.ledger import UNAVAILABLE, Ledger, nodes
from daemon.ledger.nodes import TakenOver
from daemon.ledger.records import NodeFacts
from daemon.storage.spool import Spool
from daemon.system import process_identity
from model.bundle import Bundle

BEATS_PER_LEASE = 5

log = structlog.get_logger()


@dataclass(frozen=True)
class Hold:
    """The id under which the node claims work."""

    id: str
    lost: Callable[[], bool]  # whether the lease of this id has expired, or may have


def node_facts(settings: Settings, bundle: Bundle) -> NodeFacts:
    """Return what this process says of itself as a node."""
    listener = settings.listener
    return NodeFacts(
        host=process_identity.host_name(),
        pid=os.getpid(),
        process=process_identity.own_identity(),
        address=f"{listener.host}:{listener.port}",
        bundle=bundle.digest,
        version=__version__,
        lease_s=settings.ledger.lease_s,
    )


class Node:
    """One service process. `join` once, then `start`; `leave` releases everything. Thread-safe.

    `on_freed` is called when work of another node was released, which this one may claim.
    """

    def __init__(self, ledger: Ledger, spool: Spool, facts: NodeFacts) -> None:
        self._ledger = ledger
        self._spool = spool
        self._facts = facts
        self.on_freed: Callable[[], None] = lambda: None
        self._process = uuid4().hex
        self._joined = 0
        self._beaten = time.monotonic()
        # After a gap of its own, the database may have been away: other nodes get time for their heartbeats
        # first.
        self._patient_until = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="node", daemon=True)

    @property
    def id(self) -> str:
        """The id that this process joined under last."""
        return f"{self._process}-{self._joined}"

    @property
    def incoming(self) -> Path:
        """The folder of what this process is receiving; nobody else touches it while the node lives."""
        return self._spool.receiving_folder(self._process)

    def hold(self) -> Hold:
        """Return the present id, for work that begins now."""
        held = self.id
        return Hold(held, lambda: held != self.id or time.monotonic() - self._beaten > self._facts.lease_s)

    def join(self) -> TakenOver:
        """Become a node, and take over from nodes that are gone.

        Those that ended on this machine are known at once.
        """

        def transition(connection: Connection) -> TakenOver:
            nodes.join(connection, self.id, self._facts)
            gone = [node.id for node in nodes.all(connection) if process_identity.is_gone(node.process)]
            return nodes.take_over(connection, gone, time.time(), self.id)

        self._joined += 1
        taken = self._ledger.transact(transition)
        self._beaten = time.monotonic()
        return taken

    def is_alone(self) -> bool:
        """Return whether no other node is known, alive or with an expired lease."""
        with self._ledger.read() as connection:
            return nodes.ids(connection) == {self.id}

    def delete_orphaned_incoming(self) -> int:
        """Delete files that nodes which are gone were receiving; return how many."""
        found = self._spool.receiving_processes()  # before the nodes: a process with a folder had joined by then
        with self._ledger.read() as connection:
            alive = {node_id.partition("-")[0] for node_id in nodes.ids(connection)}
        return self._spool.delete_receiving(found - alive)

    def start(self) -> None:
        """Start the thread that sends heartbeats."""
        self._thread.start()

    def leave(self) -> None:
        """Stop the heartbeats, and release at once what is still held."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        held = self.id
        try:
            self._ledger.transact(lambda connection: nodes.leave(connection, held, time.time()))
        except UNAVAILABLE as error:
            log.warning("node could not leave; others wait until its lease expires", error=type(error).__name__)
        self._spool.delete_receiving({self._process})

    @contextmanager
    def duty(self, name: str) -> Iterator[bool]:
        """Take a duty that one node at a time does for all; yield whether this node has it for the block."""
        held = self.id
        mine = self._ledger.transact(lambda connection: nodes.take_duty(connection, held, name))
        try:
            yield mine
        finally:
            if mine:
                self._ledger.transact(lambda connection: nodes.end_duty(connection, held, name))

    def _loop(self) -> None:
        while not self._ended.wait(self._facts.lease_s / BEATS_PER_LEASE):
            try:
                self._beat()
            except Exception as error:  # the database may be away; the next heartbeat renews the lease
                log.warning("heartbeat failed, trying again", error=type(error).__name__)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beaten > self._facts.lease_s / 2:
            self._patient_until = now + self._facts.lease_s
        held = self.id
        if not self._ledger.transact(lambda connection: nodes.beat(connection, held)):
            self._rejoin()
        self._beaten = time.monotonic()
        if self._beaten < self._patient_until:
            return
        with self._ledger.read() as connection:
            expired = set(nodes.expired(connection)) - {self.id}
        if expired:
            held = self.id
            taken = self._ledger.transact(lambda connection: nodes.take_over(connection, (), time.time(), held))
            self.delete_orphaned_incoming()
            log.warning("node leases expired; their work was taken over", **vars(taken))
            self.on_freed()

    def _rejoin(self) -> None:
        log.warning("node lease expired; its work was reassigned; rejoining")
        self.join()
        self._spool.receiving_folder(self._process)
        self.on_freed()
