"""A process that loads a model once and forks workers from it, which share the memory of its weights.

Started by `ProcessPool`, with the number of the socket over which it is spoken to. Forking is safe here: torch is kept
to one thread, and the kernels' threads take no lock that a child needs, which starts its own. Models on a GPU are
loaded by the workers themselves, since CUDA cannot be forked.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, Protocol

from rwkvbatch import signals
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.replay.messages import ASKED_TO_LEAVE, Event, Joined, Leave, Left, Note, Order, Report
from rwkvbatch.replay.models import ModelProvider, Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.worker import Worker

HEARTBEAT_S = 0.5
"""A worker that has nothing to report says so this often, so that one can see it live."""


class Channel(Protocol):
    """A two-way connection; `multiprocessing`'s, in practice."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...


class NoteTaker(logging.Handler):
    """Keeps log records until the next report takes them to the driver, whose log they belong in."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._notes: list[Note] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.append(Note(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[Note, ...]:
        notes, self._notes = tuple(self._notes), []
        return notes


@contextmanager
def noted(notes: NoteTaker) -> Generator[None]:
    """What this package logs, and Python's warnings, whoever gives them, go to `notes` and nowhere else."""
    logger = logging.getLogger("rwkvbatch")

    def log(message: Warning | str, *_: object, **__: object) -> None:
        logging.getLogger(f"{logger.name}.warnings").warning("%s", message)

    logger.addHandler(notes)
    logger.propagate = False
    with warnings.catch_warnings():
        warnings.showwarning = log
        try:
            yield
        finally:
            logger.removeHandler(notes)


def room_for(batch: int) -> int:
    """How many dialogues a worker wants to hold: those under way, and some to begin while the driver is asked."""
    return batch + max(1, batch // 2)


def serve(
    channel: Channel,
    make_worker: Callable[[], Worker],
    name: str,
    batch: int,
    notes: NoteTaker | None = None,
) -> None:
    """Serve until `Leave`, or until the driver is gone. Any other end is told to the driver as `Left`.

    Args:
        notes: what was noted before, which goes to the driver too.
    """
    notes = notes or NoteTaker()
    with noted(notes):
        _tell(channel, _end_of_service(channel, make_worker, name, batch, notes))


def _end_of_service(
    channel: Channel, make_worker: Callable[[], Worker], name: str, batch: int, notes: NoteTaker
) -> Left:
    try:
        worker = make_worker()
        orders = _orders_from(channel)
        channel.send(Joined(name, room_for(batch)))
        _serve_orders(channel, worker, orders, notes)
    except (EOFError, OSError):
        return Left("the driver is gone")
    except RwkvBatchError as error:
        return Left(str(error), error)
    except Exception as error:
        logging.getLogger(__name__).error("%s", traceback.format_exc())
        _tell(channel, Report(notes=notes.take()))
        return Left(f"{type(error).__name__}: {error}")
    return Left(ASKED_TO_LEAVE)


def _serve_orders(channel: Channel, worker: Worker, orders: _Orders, notes: NoteTaker) -> None:
    told_s = time.monotonic()
    leaving = False
    while not leaving:
        while worker.idle or not orders.empty():
            order = orders.get()
            if order is None:
                raise EOFError
            worker.take(order)
            if isinstance(order, Leave):
                leaving = True
                break
        report = worker.step()
        now = time.monotonic()
        taken = notes.take()
        if report.rows or report.over or taken or worker.idle or now - told_s >= HEARTBEAT_S:
            channel.send(Report(report.rows, report.over, report.active, taken))
            told_s = now


_Orders = queue.SimpleQueue[Order | None]


def _orders_from(channel: Channel) -> _Orders:
    """A thread reads them, so that the driver can always send: two ends that both wait to send would wait forever."""
    orders: _Orders = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                orders.put(channel.recv())
        except (EOFError, OSError):
            orders.put(None)

    threading.Thread(target=read, name="orders", daemon=True).start()
    return orders


def _tell(channel: Channel, event: Event) -> None:
    try:
        channel.send(event)
    except (OSError, ValueError):
        return


@dataclass(frozen=True)
class Load:
    """Make the shop and, with `here`, load the setup's model in this process; answered with its spec or an error."""

    plan: Plan
    make_loader: Callable[[], ModelProvider]
    setup: Setup
    here: bool


@dataclass(frozen=True)
class Hire:
    """Fork a worker that speaks over the socket that follows; answered with its process id."""

    name: str
    setup: Setup


@dataclass(frozen=True)
class Bury:
    """Answered with the wait status of a worker that is ending."""

    process: int


def main() -> None:
    """Answer requests until the driver is gone."""
    signals.ignore()
    notes = NoteTaker()
    with noted(notes):
        _answer(Connection(int(sys.argv[1])), notes)


def _answer(channel: Connection[Any, Any], notes: NoteTaker) -> None:
    """`notes` are of what was loaded here: the first worker takes them along."""
    loaded: Load | None = None
    shop: ModelProvider | None = None
    while True:
        try:
            request = channel.recv()
        except (EOFError, OSError):
            return
        match request:
            case Load():
                loaded, shop = request, request.make_loader()
                spec = _spec(shop, request)
                if request.here and not isinstance(spec, RwkvBatchError):
                    _warm_up(shop, request)
                _say(channel, spec)
                gc.freeze()  # so that a worker's collector does not touch, and copy, what it shares
            case Hire():
                assert loaded is not None
                assert shop is not None
                socket = recv_handle(channel)
                process = os.fork()
                if process == 0:
                    channel.close()
                    _work(Connection(socket), loaded.plan, shop, request, notes)
                notes.take()
                os.close(socket)
                _say(channel, process)
            case Bury(process):
                _say(channel, os.waitpid(process, 0)[1])
            case _:
                raise TypeError(f"not a request: {request!r}")


def _say(channel: Connection[Any, Any], answer: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the driver is gone: the next request is the end
        channel.send(answer)


def _spec(shop: ModelProvider, load: Load) -> Any:
    try:
        return shop.specs([load.setup])[load.setup] if load.here else _spec_in_a_child(shop, load.setup)
    except RwkvBatchError as error:
        return error


def _warm_up(shop: ModelProvider, load: Load) -> None:
    """Do what every worker would have to do before its first step: vocabulary, modules."""
    with contextlib.suppress(RwkvBatchError):  # a worker meets the error again, and reports it
        shop.desk(load.setup, load.plan)
        shop.engine(load.setup, load.plan, 1)


def _spec_in_a_child(shop: ModelProvider, setup: Setup) -> Any:
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        channel: Connection[Any, Any] = Connection(sending, readable=False)
        try:
            channel.send(shop.specs([setup])[setup])
        except Exception as error:
            channel.send(error)
        os._exit(0)
    os.close(sending)
    channel = Connection(receiving, writable=False)
    try:
        answer = channel.recv()
    except EOFError:
        answer = RwkvBatchError("the process that loaded the model ended early")
    channel.close()
    os.waitpid(process, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(channel: Connection[Any, Any], plan: Plan, shop: ModelProvider, request: Hire, notes: NoteTaker) -> None:
    """The worker's whole life; does not return."""
    status = 1
    try:
        serve(
            channel,
            lambda: Worker(plan, shop, request.setup),
            request.name,
            plan.settings.batch_size,
            notes,
        )
        status = 0
    finally:
        os._exit(status)
