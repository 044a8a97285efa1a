"""A receiver, as the service sees it: a process that serves associations and has everything but the ledger.

The service hands it connections with their A-ASSOCIATE-RQ, decides on them, and records what it placed in the
spool. So the state stays in one place. What a receiver had in hand when it died was not answered: its peer
sends it again.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import structlog

from config.settings import Log as LogSettings
from config.settings import Settings
from daemon.dimse.pending_connections import Address
from daemon.errors import RefusedInstance
from daemon.events import bus, timings
from daemon.events.bus import WorkerKind
from daemon.events.timings import Stage, StageTiming
from daemon.receiving.receiver_child import run_receiver
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
    ToService,
)
from daemon.receiving.spooling import SpooledInstance
from daemon.receiving.store_scp import ScpCallbacks
from daemon.system.backoff import Backoff
from daemon.system.supervisor import PingRule, SupervisedProcess

SEND_LIMIT_S = 5  # a receiver that takes nothing for so long is killed and restarted
REPLY_THREADS = 16  # of the service, for each receiver
RESTART_BACKOFF = Backoff(first_s=0.5, max_s=60.0)
PING_AFTER_S = 5.0  # of silence
HANG_LIMIT_S = 30.0  # for the answer to a ping, on a busy machine
STOP_MARGIN_S = 10.0  # for the last steps of a receiver, beyond the limit of a stop

log = structlog.get_logger()


class ReceiverProcess:
    """One receiver, restarted when it exits. Thread-safe.

    It receives into `folder` and places instances in the spool, which must be a directory; `record` takes
    what it placed (see `Intake.record`).
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        folder: Path,
        record: Callable[[Sequence[SpooledInstance]], list[Exception | None]],
    ) -> None:
        self._name = name
        self._settings = settings
        self._folder = folder
        self._record = record
        self._process = SupervisedProcess(
            f"mammod-{name}",
            WorkerKind.RECEIVER,
            run_receiver,
            send_limit_s=SEND_LIMIT_S,
            backoff=RESTART_BACKOFF,
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._process.keep_running, args=(self._run, self._stopping), name=name, daemon=True
        )
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self.is_ready = False

    @property
    def open(self) -> int:
        """Return the number of associations that were handed to it and have not ended."""
        return len(self._open)

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if there is no live process."""
        return self._process.pid

    def start(self, address: Address, callbacks: ScpCallbacks) -> None:
        """Start the process; do not wait until it `is_ready`.

        Its requests go to `callbacks`, except `accept` and `full`.
        """
        self._callbacks = callbacks
        self._parameters = StartParameters(
            listener=self._settings.listener,
            log=self._settings.log,
            spool=self._settings.spool.directory,
            min_free=self._settings.spool.min_free,
            folder=self._folder,
            address=address,
            takes_commitment=callbacks.commitment is not None,
        )
        self._thread.start()

    def serve(self, association_id: str, connection: socket.socket, address: Address, request: bytes) -> None:
        """Hand an association over; if the receiver exits just now, its peer must call again."""
        with self._lock:
            self._open.add(association_id)
        try:
            self._process.send(Serve(association_id, address, request), connection)
        except OSError as error:
            self._end_association(association_id)
            log.warning("receiver takes no association", receiver=self._name, error=type(error).__name__)
        finally:
            connection.close()

    def reconfigure_log(self, settings: LogSettings) -> None:
        """Let the receiver log by these settings from now on."""
        self._parameters = replace(self._parameters, log=settings)
        with contextlib.suppress(OSError):
            self._process.send(ReconfigureLog(settings))

    def stop(self, limit_s: float) -> None:
        """Let its associations finish within `limit_s` seconds, as `StoreScp.stop`, then end the process."""
        self._stopping.set()
        if self.is_ready:
            with contextlib.suppress(OSError):
                self._process.send(Stop(limit_s))
        else:
            self._process.kill()
        if self._thread.is_alive():
            self._thread.join(limit_s + STOP_MARGIN_S)
            self._process.kill()
            self._thread.join(STOP_MARGIN_S)  # it may wait for a ledger that does not answer

    def _run(self) -> int | None:
        """Start a process, handle its messages until it exits, and return its exit code."""
        self._delete_incoming()
        self._process.arguments = (self._parameters,)
        try:
            self._process.start()
            if self._stopping.is_set():  # `stop` may have come before there was a process to kill
                self._process.kill()
            # Leaving the block waits for requests under way: they precede the end of their association.
            with (
                ThreadPoolExecutor(REPLY_THREADS, f"{self._name}-replies") as replying,
                self._recording() as recording,
            ):
                for message in self._process.messages(PingRule(Ping(), PING_AFTER_S, HANG_LIMIT_S)):
                    self._handle(message, replying, recording)
                self.is_ready = False
        finally:
            self.is_ready = False
            exitcode = self._process.close()
            for association_id in list(self._open):
                self._end_association(association_id)
            self._delete_incoming()
        return exitcode

    def _handle(self, message: ToService, replying: ThreadPoolExecutor, recording: SimpleQueue[Request | None]) -> None:
        match message:
            case Request(operation=Operation.RECORD):
                recording.put(message)
            case Request():
                replying.submit(self._reply, message)
            case Facts(facts):
                for fact in facts:
                    timings.publish(fact) if isinstance(fact, StageTiming) else bus.publish(fact)
            case AssociationEnded(association_id):
                self._end_association(association_id)
            case Alive():
                self.is_ready = True

    def _reply(self, request: Request) -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = self._call(request.operation, request.arguments)
        except Exception as raised:
            error = _error_to_send(request, raised)
        self._send_replies([Reply(request.number, result, error)])

    def _call(self, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        match operation:
            case Operation.DECIDE:
                return self._callbacks.decide(*arguments)
            case Operation.COMMITMENT:
                assert self._callbacks.commitment is not None
                return self._callbacks.commitment(*arguments)

    @contextmanager
    def _recording(self) -> Iterator[SimpleQueue[Request | None]]:
        """Record what is put into the queue; requests that came during one write are recorded together."""
        requests: SimpleQueue[Request | None] = SimpleQueue()

        def record() -> None:
            while first := requests.get():
                batch = [first]
                with contextlib.suppress(Empty):
                    while following := requests.get_nowait():
                        batch.append(following)
                    requests.put(None)  # the end is for the next turn
                try:
                    self._record_batch(batch)
                except Exception:  # the senders would wait for ever; after the restart they send again
                    log.exception("receiver cannot be answered, killing it", receiver=self._name)
                    self._process.kill()

        thread = threading.Thread(target=record, name=f"{self._name}-records", daemon=True)
        thread.start()
        try:
            yield requests
        finally:
            requests.put(None)
            thread.join()

    def _record_batch(self, batch: Sequence[Request]) -> None:
        with timings.counted(Stage.RECEIVE):
            try:
                errors = self._record([request.arguments[0] for request in batch])
            except Exception as error:
                errors = [error] * len(batch)
            self._send_replies(
                [
                    Reply(request.number, None, _error_to_send(request, error))
                    for request, error in zip(batch, errors, strict=True)
                ]
            )

    def _send_replies(self, replies: Sequence[Reply]) -> None:
        with contextlib.suppress(OSError):
            self._process.send(Replies(tuple(replies)))

    def _end_association(self, association_id: str) -> None:
        with self._lock:
            if association_id not in self._open:
                return
            self._open.remove(association_id)
        self._callbacks.ended(association_id)

    def _delete_incoming(self) -> None:
        """Delete what it was receiving; no peer was told of a success."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _error_to_send(request: Request, error: Exception | None) -> Exception | None:
    """Return the error that the receiver raises: what it can handle as it is, anything else by its type."""
    if error is None or isinstance(error, RefusedInstance | OSError):
        return error
    log.error("receiver's request failed", request=request.operation.value, exc_info=error)
    return RuntimeError(type(error).__name__)
