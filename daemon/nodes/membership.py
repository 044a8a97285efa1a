"""This process as one of the nodes that share the ledger: it gives signs of life, and takes over from those that give none.

A node that was frozen, or cut off from the database, for longer than its lease has lost what it was at: another does that
again. It then joins under a new id, and what it still did under the old one counts for nothing.
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
from daemon.ledger.nodes import NodeFacts, TakenOver
from daemon.storage.spool import Spool
from daemon.system import process_identity
from model.bundle import Bundle

BEATS_PER_LEASE = 5

log = structlog.get_logger()


@dataclass(frozen=True)
class Hold:
    """An id under which the node lives, as others need it to claim work; `lost()` once that is over or cannot be known."""

    id: str
    lost: Callable[[], bool]


def node_facts(settings: Settings, bundle: Bundle) -> NodeFacts:
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
    """One service process. `join` once, then `start`; `leave` gives everything back. Thread-safe.

    `on_freed` is called when work of a dead node was given back, which this one may take.
    """

    def __init__(self, ledger: Ledger, spool: Spool, facts: NodeFacts) -> None:
        self._ledger = ledger
        self._spool = spool
        self._facts = facts
        self.on_freed: Callable[[], None] = lambda: None
        self._process = uuid4().hex
        self._joined = 0
        self._beaten = time.monotonic()
        # After a silence of its own it may have been the database that was away: others get time to be heard first.
        self._patient_until = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="node", daemon=True)

    @property
    def id(self) -> str:
        return f"{self._process}-{self._joined}"

    @property
    def incoming(self) -> Path:
        """The folder of what this process is receiving; nobody else touches it while the node lives."""
        return self._spool.receive_in(self._process)

    def hold(self) -> Hold:
        """The present id, for work that begins now."""
        held = self.id
        return Hold(held, lambda: held != self.id or time.monotonic() - self._beaten > self._facts.lease_s)

    def join(self) -> TakenOver:
        """Become a node, and take up what dead ones left, those that ended on this machine at once."""

        def transition(connection: Connection) -> TakenOver:
            nodes.join(connection, self.id, self._facts)
            gone = [row.id for row in nodes.all(connection) if process_identity.is_gone(row.process)]
            return nodes.take_over(connection, gone, time.time(), self.id)

        self._joined += 1
        taken = self._ledger.transact(transition)
        self._beaten = time.monotonic()
        return taken

    def is_alone(self) -> bool:
        """Whether no other node is known, alive or not yet taken for dead."""
        with self._ledger.read() as connection:
            return nodes.ids(connection) == {self.id}

    def sweep_incoming(self) -> int:
        """Remove what dead nodes were receiving; returns how many files."""
        found = self._spool.receiving()  # before the nodes: who has a folder had joined by then
        with self._ledger.read() as connection:
            alive = {node_id.partition("-")[0] for node_id in nodes.ids(connection)}
        return self._spool.sweep_receiving(found - alive)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Stop giving signs of life, and give back at once what is still held."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        held = self.id
        try:
            self._ledger.transact(lambda connection: nodes.leave(connection, held, time.time()))
        except UNAVAILABLE as error:
            log.warning("the node could not leave; others wait for its lease to end", error=type(error).__name__)
        self._spool.sweep_receiving({self._process})

    @contextmanager
    def duty(self, name: str) -> Iterator[bool]:
        """Whether this node does for the length of the block what one node at a time does for all."""
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
            except Exception as error:  # the database may be away; the node lives on and says so when it is back
                log.warning("no sign of life could be given, trying again", error=type(error).__name__)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beaten > self._facts.lease_s / 2:
            self._patient_until = now + self._facts.lease_s
        held = self.id
        if not self._ledger.transact(lambda connection: nodes.beat(connection, held)):
            self._join_again()
        self._beaten = time.monotonic()
        if self._beaten < self._patient_until:
            return
        with self._ledger.read() as connection:
            silent = set(nodes.silent(connection)) - {self.id}
        if silent:
            held = self.id
            taken = self._ledger.transact(lambda connection: nodes.take_over(connection, (), time.time(), held))
            self.sweep_incoming()
            log.warning("nodes without a sign of life: their work is taken over", **vars(taken))
            self.on_freed()

    def _join_again(self) -> None:
        log.warning("this node was taken for dead: what it was at is done by others, it joins again")
        self.join()
        self._spool.receive_in(self._process)
        self.on_freed()
