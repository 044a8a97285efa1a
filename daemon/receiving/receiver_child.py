"""What runs in a receiver process: it serves associations and asks the service for what needs the ledger."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from queue import SimpleQueue
from typing import Any

import structlog
from pydicom import Dataset

from daemon.dimse.pending_connections import allow_descriptors
from daemon.events import bus, timings
from daemon.events.bus import Event
from daemon.events.timings import StageTiming
from daemon.receiving.receiver_messages import (
    Alive,
    AssociationEnded,
    Facts,
    Operation,
    Ping,
    ReconfigureLog,
    Replies,
    Reply,
    Request,
    Serve,
    StartParameters,
    Stop,
    ToReceiver,
)
from daemon.receiving.spooling import spool_instance
from daemon.receiving.store_scp import DESCRIPTORS_EACH, ScpCallbacks, StoreScp
from daemon.storage.spool import Spool
from daemon.system import log as logging_setup
from daemon.system.child_process import initialise_child

FACTS_INTERVAL_S = 0.1  # facts go to the service together

log = structlog.get_logger()


class ServiceClient:
    """The service as the receiver's threads ask it. Thread-safe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._pending: dict[int, SimpleQueue[Reply]] = {}
        self._number = 0
        self._facts: list[Event | StageTiming] = []
        self._has_facts = threading.Event()
        threading.Thread(target=self._send_facts_regularly, name="facts", daemon=True).start()

    def ask(self, operation: Operation, *arguments: Any) -> Any:
        """Return what the service returns, or raise what it raises."""
        replies: SimpleQueue[Reply] = SimpleQueue()
        with self._lock:
            self._number += 1
            self._pending[self._number] = replies
            self._pipe.send(Request(self._number, operation, arguments))
        reply = replies.get()
        if reply.error is not None:
            raise reply.error
        return reply.result

    def send(self, message: Alive | AssociationEnded) -> None:
        """Send a message that has no reply."""
        with self._lock, contextlib.suppress(OSError):  # if the service is gone, this process exits as well
            self._pipe.send(message)

    def publish(self, fact: Event | StageTiming) -> None:
        """Send a fact together with others, within `FACTS_INTERVAL_S` seconds."""
        with self._lock:
            self._facts.append(fact)
        self._has_facts.set()

    def _send_facts_regularly(self) -> None:
        while True:
            self._has_facts.wait()
            time.sleep(FACTS_INTERVAL_S)
            self._has_facts.clear()
            self.send_facts()

    def send_facts(self) -> None:
        """Send the facts that wait."""
        with self._lock, contextlib.suppress(OSError):
            facts, self._facts = self._facts, []
            self._pipe.send(Facts(tuple(facts)))

    def take(self, replies: Sequence[Reply]) -> None:
        """Hand each reply to the thread that waits for it."""
        with self._lock:
            waiting = [self._pending.pop(reply.number) for reply in replies]
        for queue, reply in zip(waiting, replies, strict=True):
            queue.put(reply)


def run_receiver(pipe: Connection, parameters: StartParameters) -> None:
    """Serve the associations that the service hands over, until it says stop or is gone."""
    initialise_child("mammod-receiver")
    logging_setup.configure(parameters.log)
    logging_setup.catch_unhandled()
    allow_descriptors(DESCRIPTORS_EACH * parameters.listener.max_associations)
    parameters.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = ServiceClient(pipe)
    scp = StoreScp(
        parameters.listener,
        folder=parameters.folder,
        address=parameters.address,
        callbacks=_callbacks(parameters, service),
    )
    bus.subscribe(service.publish)
    timings.subscribe(service.publish)
    gc.collect()
    gc.freeze()  # as the service does
    service.send(Alive())
    while True:
        try:
            message: ToReceiver = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # the service is gone
        match message:
            case Replies(replies):
                service.take(replies)
            case Serve():
                _serve(scp, message, _receive_connection(pipe))
            case ReconfigureLog(settings):
                logging_setup.configure(settings)
            case Ping():
                service.send(Alive())
            case Stop(limit_s):
                threading.Thread(target=_stop, args=(scp, service, limit_s)).start()


def _callbacks(parameters: StartParameters, service: ServiceClient) -> ScpCallbacks:
    spool = Spool(parameters.spool, parameters.min_free)

    def commitment(calling_ae: str, information: Dataset) -> int:
        return int(service.ask(Operation.COMMITMENT, calling_ae, information))

    return ScpCallbacks(
        decide=lambda association_id, asked: service.ask(Operation.DECIDE, association_id, asked),
        full=spool.full,
        accept=lambda incoming: service.ask(Operation.RECORD, spool_instance(incoming, spool)),
        commitment=commitment if parameters.takes_commitment else None,
        ended=lambda association_id: service.send(AssociationEnded(association_id)),
    )


def _serve(scp: StoreScp, message: Serve, connection: socket.socket) -> None:
    try:
        scp.serve(message.association_id, connection, message.address, message.request)
    except Exception as error:  # such as a thread that cannot be started
        log.error("connection closed", address=str(message.address[0]), reason=type(error).__name__)
        connection.close()


def _receive_connection(pipe: Connection) -> socket.socket:
    try:
        return socket.socket(fileno=recv_handle(pipe))
    except (OSError, RuntimeError) as error:  # no descriptor is left, and what follows on the pipe is unknown
        log.critical("connection cannot be received from the service, exiting", error=type(error).__name__)
        os._exit(1)


def _stop(scp: StoreScp, service: ServiceClient, limit_s: float) -> None:
    scp.stop(limit_s)
    service.send_facts()
    os._exit(0)
