"""A receiver: a process that serves associations beside the service's own, and has everything but the ledger.

The service hands it connections with their A-ASSOCIATE-RQ, decides on them, and records what it placed in the spool. So
the state stays in one place, and what a receiver had in hand when it died was not answered: its peer sends it again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from pydicom import Dataset

from config import settings
from daemon.dimse.pending_connections import Address, allow_descriptors
from daemon.errors import RefusedInstance
from daemon.events import bus, timings
from daemon.events.bus import Event
from daemon.events.timings import Stage, StageTiming
from daemon.receiving.spooling import SpooledInstance, spool_instance
from daemon.receiving.store_scp import DESCRIPTORS_EACH, ScpCallbacks, StoreScp
from daemon.storage.spool import Spool
from daemon.system import log as logging_setup
from daemon.system.child_process import ChildProcess, begin

HAND_OVER_LIMIT_S = 5  # seconds; a receiver that takes nothing for so long is ended, and another begun
ANSWERING_THREADS = 16  # of the service, for each receiver
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before a receiver that ended is begun again
ASK_AFTER_S = 5.0  # of silence
HANG_LIMIT_S = 30.0  # for a receiver to say that it is there, on a machine that is busy
START_LIMIT_S = 300.0  # to load its modules
STOP_SPARE_S = 10.0  # for its last steps, beyond the limit of a stop
TOLD_EVERY_S = 0.1

log = structlog.get_logger()


class Question(StrEnum):
    """What a receiver asks the service: the methods of `ScpCallbacks`, and `record` in place of `accept`."""

    DECIDE = "decide"
    RECORD = "record"
    COMMITMENT = "commitment"


@dataclass(frozen=True)
class Serve:
    """To the receiver: serve this association. Its connection follows as a descriptor."""

    association_id: str
    address: Address
    request: bytes


@dataclass(frozen=True)
class Stop:
    """To the receiver: let associations finish within so many seconds, and end."""

    limit_s: float


@dataclass(frozen=True)
class Log:
    """To the receiver: log so from now on."""

    log: settings.Log


@dataclass(frozen=True)
class AreYouThere:
    """To the receiver, which answers Here."""


@dataclass(frozen=True)
class Answer:
    """What was given, or raised, for the question of this number."""

    number: int
    given: Any
    raised: Exception | None


@dataclass(frozen=True)
class Answers:
    """To the receiver."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Ask:
    """From the receiver."""

    number: int
    question: Question
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Here:
    """From the receiver: it serves."""


@dataclass(frozen=True)
class Ended:
    """From the receiver: an association is over."""

    association_id: str


@dataclass(frozen=True)
class Told:
    """From the receiver: what was told there, to be told again here."""

    facts: tuple[Event | StageTiming, ...]


ToReceiver = Serve | Stop | Log | AreYouThere | Answers
ToService = Ask | Here | Ended | Told


@dataclass(frozen=True)
class Start:
    """What a receiver is begun with; `folder` takes what it is receiving, `address` is the one that is called."""

    listener: settings.Listener
    log: settings.Log
    spool: Path
    min_free: int
    folder: Path
    address: Address
    takes_commitment: bool


class ReceiverProcess:
    """One receiver, begun anew when it ended. Thread-safe.

    It receives into `folder` and places in the spool, which must be a directory; `record` takes what it placed (see
    `Intake.record`).
    """

    def __init__(
        self,
        name: str,
        chosen: settings.Settings,
        folder: Path,
        record: Callable[[Sequence[SpooledInstance]], list[Exception | None]],
    ) -> None:
        self._name = name
        self._chosen = chosen
        self._folder = folder
        self._record = record
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._child: ChildProcess | None = None
        self._stopping = threading.Event()
        self.is_ready = False

    @property
    def open(self) -> int:
        """Associations that were handed to it and have not ended."""
        return len(self._open)

    @property
    def pid(self) -> int | None:
        """Of the process, while it lives."""
        child = self._child
        return child.pid if child is not None else None

    def start(self, address: Address, behind: ScpCallbacks) -> None:
        """Begin the process; does not wait until it `is_ready`. Its questions go to `behind`, but for `accept` and `full`."""
        self._behind = behind
        chosen = self._chosen
        self._start = Start(
            chosen.listener,
            chosen.log,
            chosen.spool.directory,
            chosen.spool.min_free,
            self._folder,
            address,
            behind.commitment is not None,
        )
        self._thread.start()

    def serve(self, association_id: str, connection: socket.socket, address: Address, request: bytes) -> None:
        """Hand an association over. The connection is closed where the receiver ends just now: its peer calls again."""
        with self._lock:
            self._open.add(association_id)
        try:
            self._send(Serve(association_id, address, request), connection)
        except OSError as error:
            self._is_over(association_id)
            log.warning("a receiver cannot take an association", receiver=self._name, error=type(error).__name__)
        finally:
            connection.close()

    def reconfigure_log(self, chosen: settings.Log) -> None:
        self._start = replace(self._start, log=chosen)
        with contextlib.suppress(OSError):
            self._send(Log(chosen))

    def stop(self, limit_s: float) -> None:
        """Let its associations finish within `limit_s` seconds, as `StoreScp.stop`, and end the process."""
        self._stopping.set()
        if self.is_ready:
            with contextlib.suppress(OSError):
                self._send(Stop(limit_s))
        else:
            self._kill()
        if self._thread.is_alive():
            self._thread.join(limit_s + STOP_SPARE_S)
            self._kill()
            self._thread.join(STOP_SPARE_S)  # it may wait for a ledger that does not answer

    def _send(self, message: ToReceiver, connection: socket.socket | None = None) -> None:
        """
        Raises:
            OSError: there is no receiver, or it takes nothing; then it is ended, as half a message may have gone.
        """
        with self._sending:
            child = self._child
            if child is None:
                raise BrokenPipeError
            try:
                child.pipe.send(message)
                if connection is not None:
                    send_handle(child.pipe, connection.fileno(), child.pid or 0)
            except OSError:
                child.kill()
                raise

    def _kill(self) -> None:
        with self._sending:
            if self._child is not None:
                self._child.kill()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                how: object = self._until_its_end()
            except OSError as error:  # no memory, no more processes
                how = type(error).__name__
            except Exception as error:
                log.exception("a receiver cannot be heard", receiver=self._name)
                how = type(error).__name__
            if self._stopping.is_set():
                break
            bus.publish(bus.WorkerRestarted(bus.WorkerKind.RECEIVER))
            log.error("a receiver ended, it is begun again", receiver=self._name, exit=how)
            if time.monotonic() - begun > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _until_its_end(self) -> int | None:
        """Begin a process and hear it until it ends; how it ended."""
        self._sweep()
        child = ChildProcess(f"mammod-{self._name}", _receive, self._start)
        try:
            _limit_sending(child.pipe)
            with self._sending:
                self._child = child
            if self._stopping.is_set():  # it may have been too early for `stop`
                child.kill()
            # At its end the answers under way are done: what they say of an association comes before its end.
            with (
                ThreadPoolExecutor(ANSWERING_THREADS, f"{self._name}-answers") as answering,
                self._recording() as recording,
            ):
                with contextlib.suppress(EOFError, OSError):
                    said = select.poll()
                    said.register(child.pipe, select.POLLIN)
                    while self._is_there(child, said):
                        self._hear(child.pipe.recv(), answering, recording)
                self.is_ready = False
        finally:
            self.is_ready = False
            with self._sending:
                self._child = None
            child.end()
            for association_id in list(self._open):
                self._is_over(association_id)
            self._sweep()
        return child.exitcode

    def _is_there(self, child: ChildProcess, said: select.poll) -> bool:
        """Once there is something to hear. One that says nothing is asked; one that does not answer is ended (False)."""
        if self.is_ready:
            if said.poll(ASK_AFTER_S * 1000):
                return True
            self._send(AreYouThere())
        if said.poll((HANG_LIMIT_S if self.is_ready else START_LIMIT_S) * 1000):
            return True
        log.error("a receiver hangs, it is ended", receiver=self._name)
        child.kill()
        return False

    def _hear(self, message: ToService, answering: ThreadPoolExecutor, recording: SimpleQueue[Ask | None]) -> None:
        match message:
            case Ask(question=Question.RECORD):
                recording.put(message)
            case Ask():
                answering.submit(self._answer, message)
            case Told(facts):
                for fact in facts:
                    timings.publish(fact) if isinstance(fact, StageTiming) else bus.publish(fact)
            case Ended(association_id):
                self._is_over(association_id)
            case Here():
                self.is_ready = True

    def _answer(self, asked: Ask) -> None:
        given: Any = None
        raised: Exception | None = None
        try:
            given = self._do(asked.question, asked.arguments)
        except Exception as error:
            raised = _raised(asked, error)
        self._give([Answer(asked.number, given, raised)])

    def _do(self, question: Question, arguments: tuple[Any, ...]) -> Any:
        match question:
            case Question.DECIDE:
                return self._behind.decide(*arguments)
            case Question.COMMITMENT:
                assert self._behind.commitment is not None
                return self._behind.commitment(*arguments)

    @contextmanager
    def _recording(self) -> Iterator[SimpleQueue[Ask | None]]:
        """Takes what is to be recorded. What came while the ledger was written to is recorded, and answered, together."""
        asked: SimpleQueue[Ask | None] = SimpleQueue()

        def record() -> None:
            while first := asked.get():
                lot = [first]
                with contextlib.suppress(Empty):
                    while following := asked.get_nowait():
                        lot.append(following)
                    asked.put(None)  # the end is for the next turn
                try:
                    self._record_lot(lot)
                except Exception:  # its senders would wait for ever: they come again when it is begun anew
                    log.exception("a receiver cannot be answered, it is ended", receiver=self._name)
                    self._kill()

        thread = threading.Thread(target=record, name=f"{self._name}-records", daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            asked.put(None)
            thread.join()

    def _record_lot(self, lot: Sequence[Ask]) -> None:
        with timings.counted(Stage.RECEIVE):
            try:
                errors = self._record([asked.arguments[0] for asked in lot])
            except Exception as error:
                errors = [error] * len(lot)
            self._give(
                [Answer(asked.number, None, _raised(asked, error)) for asked, error in zip(lot, errors, strict=True)]
            )

    def _give(self, answers: Sequence[Answer]) -> None:
        with contextlib.suppress(OSError):
            self._send(Answers(tuple(answers)))

    def _is_over(self, association_id: str) -> None:
        with self._lock:
            if association_id not in self._open:
                return
            self._open.remove(association_id)
        self._behind.ended(association_id)

    def _sweep(self) -> None:
        """Remove what it was receiving, which nobody was told success of."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _raised(asked: Ask, error: Exception | None) -> Exception | None:
    """What the receiver raises for it: what it knows what to do with as it is, anything else by its kind."""
    if error is None or isinstance(error, RefusedInstance | OSError):
        return error
    log.error("a receiver's question failed", question=asked.question.value, exc_info=error)
    return RuntimeError(type(error).__name__)


def _limit_sending(pipe: Connection) -> None:
    # One that is frozen must not hold up who hands over to it. The socket is the pipe's own: it stays open.
    end = socket.socket(fileno=os.dup(pipe.fileno()))
    with end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", HAND_OVER_LIMIT_S, 0))


# --- in the process -----------------------------------------------------------------------------------------------------


class _Service:
    """The service, as the receiver's threads ask it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._asked: dict[int, SimpleQueue[Answer]] = {}
        self._number = 0
        self._facts: list[Event | StageTiming] = []
        self._told = threading.Event()
        threading.Thread(target=self._pass_on_for_ever, name="facts", daemon=True).start()

    def ask(self, question: Question, *arguments: Any) -> Any:
        """What the service gives, or raises."""
        answers: SimpleQueue[Answer] = SimpleQueue()
        with self._lock:
            self._number += 1
            self._asked[self._number] = answers
            self._pipe.send(Ask(self._number, question, arguments))
        answer = answers.get()
        if answer.raised is not None:
            raise answer.raised
        return answer.given

    def send(self, message: Here | Ended) -> None:
        with self._lock, contextlib.suppress(OSError):  # where the service is gone, this process ends as well
            self._pipe.send(message)

    def tell(self, fact: Event | StageTiming) -> None:
        """It goes together with others, soon."""
        with self._lock:
            self._facts.append(fact)
        self._told.set()

    def _pass_on_for_ever(self) -> None:
        while True:
            self._told.wait()
            time.sleep(TOLD_EVERY_S)
            self._told.clear()
            self.pass_on()

    def pass_on(self) -> None:
        """Now."""
        with self._lock, contextlib.suppress(OSError):
            facts, self._facts = self._facts, []
            self._pipe.send(Told(tuple(facts)))

    def take(self, answers: Sequence[Answer]) -> None:
        with self._lock:
            asking = [self._asked.pop(answer.number) for answer in answers]
        for one, answer in zip(asking, answers, strict=True):
            one.put(answer)


def _receive(pipe: Connection, start: Start) -> None:
    """The process."""
    begin("mammod-receiver")
    logging_setup.configure(start.log)
    logging_setup.catch_unhandled()
    allow_descriptors(DESCRIPTORS_EACH * start.listener.max_associations)
    start.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = _Service(pipe)
    reception = StoreScp(start.listener, start.folder, start.address, _behind(start, service))
    bus.subscribe(service.tell)
    timings.subscribe(service.tell)
    gc.collect()
    gc.freeze()  # as the service does
    service.send(Here())
    while True:
        try:
            message: ToReceiver = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # the service is gone
        match message:
            case Answers(answers):
                service.take(answers)
            case Serve(association_id, address, request):
                connection = _handed_over(pipe)
                try:
                    reception.serve(association_id, connection, address, request)
                except Exception as error:  # such as a thread that cannot be started
                    log.error("connection closed", address=str(address[0]), reason=type(error).__name__)
                    connection.close()
            case Log(chosen):
                logging_setup.configure(chosen)
            case AreYouThere():
                service.send(Here())
            case Stop(limit_s):
                threading.Thread(target=_stop, args=(reception, service, limit_s)).start()


def _behind(start: Start, service: _Service) -> ScpCallbacks:
    spool = Spool(start.spool, start.min_free)

    def commitment(calling_ae: str, information: Dataset) -> int:
        return int(service.ask(Question.COMMITMENT, calling_ae, information))

    return ScpCallbacks(
        decide=lambda association_id, asked: service.ask(Question.DECIDE, association_id, asked),
        full=spool.full,
        accept=lambda incoming: service.ask(Question.RECORD, spool_instance(incoming, spool)),
        commitment=commitment if start.takes_commitment else None,
        ended=lambda association_id: service.send(Ended(association_id)),
    )


def _handed_over(pipe: Connection) -> socket.socket:
    try:
        return socket.socket(fileno=recv_handle(pipe))
    except (OSError, RuntimeError) as error:  # no descriptor is left, and what comes next cannot be known
        log.critical("a connection cannot be taken over", error=type(error).__name__)
        os._exit(1)


def _stop(reception: StoreScp, service: _Service, limit_s: float) -> None:
    reception.stop(limit_s)
    service.pass_on()
    os._exit(0)
